"""Embeddings as files, and the images found through them."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.evaluated import write_encoder, write_folder

import simclr
from simclr import Embed, Neighbours
from simclr.data.embeddings import read_embeddings
from simclr.errors import DataError, SettingError
from simclr.runs.machine import Device

pytestmark = pytest.mark.slow

MACHINE = Device(accelerator="cpu", workers=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("runs") / "encoder")


@pytest.fixture
def photographs(tmp_path):
    return write_folder(tmp_path / "photographs")


def test_a_file_holds_the_embedding_of_each_readable_image(run, photographs, tmp_path, capsys):
    (photographs / "train" / "class0" / "broken.png").write_bytes(b"no image")
    found = Embed(run=run, data=str(photographs), layer="z", out=tmp_path / "z.npz", machine=MACHINE)()
    assert (found["images"], found["bad"]) == (45, 1)
    assert "broken.png" in capsys.readouterr().out
    with np.load(tmp_path / "z.npz") as file:
        files = [photographs / path for path in file["paths"]]
        expected = simclr.load(run).embed(files, layer="z")
        np.testing.assert_allclose(file["features"], expected, rtol=1e-4, atol=1e-6)
        assert [path.parent.name for path in files] == file["classes"][file["labels"]].tolist()
        assert str(file["layer"]) == "z"
    task = Embed(run=run, data=str(photographs), out=tmp_path / "z.npz", machine=MACHINE)
    with pytest.raises(SettingError) as refused:
        task()
    assert refused.value.field == "out"
    assert replace(task, overwrite=True)()["images"] == 45


@pytest.mark.parametrize("kept", [True, False])
def test_neighbours_are_those_of_brute_force_without_the_query_itself(run, photographs, tmp_path, kept, capsys):
    among = str(photographs)
    if kept:
        Embed(run=run, data=among, out=tmp_path / "h.npz", machine=MACHINE)()
        among = str(tmp_path / "h.npz")
    images = sorted(photographs.rglob("*.png"))
    copy = tmp_path / "copy.png"
    shutil.copy(images[30], copy)
    queries = [images[3], copy]
    task = Neighbours(run=run, images=queries, among=among, k=4, out=tmp_path / "rows.png", machine=MACHINE)
    results = task()["neighbours"]
    h = simclr.load(run).embed(images)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    output = capsys.readouterr().out
    for query, index in zip(queries, (3, 30), strict=True):
        cosine = unit @ unit[index]
        paths, values = zip(*results[str(query)], strict=True)
        assert (images[index] in [photographs / path for path in paths]) == (query == copy)
        expected = np.sort(np.delete(cosine, index) if query != copy else cosine)[::-1][:4]
        np.testing.assert_allclose(values, expected, rtol=1e-4)
        np.testing.assert_allclose(values, [cosine[images.index(photographs / path)] for path in paths], rtol=1e-4)
        for rank, (path, value) in enumerate(results[str(query)], 1):
            assert any(line.split() == [str(rank), f"{value:.3f}", path] for line in output.splitlines())
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.width > picture.height > 0
    with pytest.raises(SettingError) as refused:
        replace(task)
    assert refused.value.field == "out"
    replace(task, overwrite=True)


def test_embeddings_of_another_encoder_or_of_changed_images_are_refused(run, photographs, tmp_path):
    file = tmp_path / "h.npz"
    Embed(run=run, data=str(photographs), out=file, machine=MACHINE)()
    query = next(photographs.rglob("*.png"))
    other = write_encoder(tmp_path / "other", seed=1)
    renamed = query.with_name("renamed.png")
    for encoder, image in ((other, query), (run, renamed)):
        if image == renamed:
            query.rename(renamed)
        with pytest.raises(DataError) as refused:
            Neighbours(run=encoder, images=[image], among=str(file), machine=MACHINE)()
        assert refused.value.path == str(file)
    file.write_bytes(b"no npz")
    with pytest.raises(DataError) as refused:
        Neighbours(run=run, images=[renamed], among=str(file), machine=MACHINE)()
    assert refused.value.path == str(file)


def test_the_split_of_each_image_is_recorded(run, photographs, tmp_path):
    for part in ("all", "test"):
        Embed(run=run, data=str(photographs), part=part, out=tmp_path / f"{part}.npz", machine=MACHINE)()
        with np.load(tmp_path / f"{part}.npz") as file:
            names = [part if part != "all" else path.partition("/")[0] for path in file["paths"]]
            assert file["split"].tolist() == names
            assert set(names) == ({"train", "test"} if part == "all" else {"test"})


def test_names_that_are_not_text_are_printed(run, photographs, tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    source = next(photographs.rglob("*.png"))
    shutil.copy(source, photographs / "train" / "class0" / name)
    (photographs / "train" / "class0" / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no image")
    Embed(run=run, data=str(photographs), out=tmp_path / "h.npz", machine=MACHINE)()
    Neighbours(run=run, images=[source], among=str(tmp_path / "h.npz"), k=60, machine=MACHINE)()
    output = capsys.readouterr().out
    output.encode()
    assert "caf" in output
    assert "bad" in output


def test_a_weights_file_stands_for_its_run(photographs, tmp_path):
    run = write_encoder(tmp_path / "run")
    Embed(run=run / "encoder.safetensors", data=str(photographs), machine=MACHINE)()
    assert (run / "embeddings-photographs.npz").is_file()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_of_parts_holds_what_a_file_does(run, photographs, tmp_path, dtype, monkeypatch):
    (photographs / "train" / "class0" / "broken.png").write_bytes(b"no image")
    task = Embed(run=run, data=str(photographs), out=tmp_path / "e.npz", machine=MACHINE)
    task()
    parts = replace(task, out=tmp_path / "parts", dtype=dtype, part_size=7)
    for rank, missing in ((2, 5), (0, 2)):  # of three processes, which compute 2, 3 and 2 of 7 parts
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("RANK", str(rank))
        result = parts()
        assert result["missing"] == missing and not (tmp_path / "parts" / "embeddings.json").exists()
        assert result["images"] + result["bad"] == (14 if rank else 18)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels.npy").write_bytes(b"of the user")
    for changed in (replace(parts, part_size=8), replace(parts, out=tmp_path / "other")):
        with pytest.raises(SettingError) as refused:
            changed()
        assert refused.value.field == "out"
    assert (tmp_path / "other" / "labels.npy").read_bytes() == b"of the user"
    computed = sorted((tmp_path / "parts" / ".embedding").glob("0*.json"))
    times = [file.stat().st_mtime_ns for file in computed]
    monkeypatch.delenv("WORLD_SIZE")
    result = parts()  # begins where they ended
    assert len(times) == 5 and (result["images"], result["bad"], result["missing"]) == (45, 1, 0)
    one, other = read_embeddings(tmp_path / "e.npz"), read_embeddings(tmp_path / "parts")
    assert other.features.dtype == dtype and not (tmp_path / "parts" / ".embedding").exists()
    np.testing.assert_allclose(other.features, one.features, rtol=1e-2 if dtype == "float16" else 1e-6, atol=1e-6)
    assert list(other.paths) == list(one.paths) and list(other.split) == list(one.split)
    assert (other.indices == one.indices).all() and other.data == one.data and other.made_with == one.made_with
    assert (other.annotation[0] == one.annotation[0]).all() and other.annotation[1] == one.annotation[1]
    with pytest.raises(SettingError):
        parts()
    assert replace(parts, overwrite=True)()["images"] == 45


@pytest.mark.parametrize("overwrite", [False, True])
def test_embeddings_are_not_written_among_other_files(run, photographs, overwrite):
    before = sorted(photographs.rglob("*"))
    with pytest.raises(SettingError) as refused:
        Embed(run=run, data=str(photographs), out=photographs, overwrite=overwrite, machine=MACHINE)()
    assert refused.value.field == "out"
    assert sorted(photographs.rglob("*")) == before
