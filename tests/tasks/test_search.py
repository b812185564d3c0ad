"""Embeddings as files, and the images found through them."""

import numpy as np
import pytest
from PIL import Image
from support.evaluated import write_encoder, write_folder

import simclr
from simclr import Embed, Machine, Neighbours

MACHINE = Machine(accelerator="cpu", workers=0)


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
    with pytest.raises(ValueError, match="exists already"):
        Embed(run=run, data=str(photographs), out=tmp_path / "z.npz", machine=MACHINE)()


@pytest.mark.parametrize("kept", [True, False])
def test_an_image_finds_itself_and_then_what_brute_force_finds(run, photographs, tmp_path, kept):
    among = str(photographs)
    if kept:
        Embed(run=run, data=among, out=tmp_path / "h.npz", machine=MACHINE)()
        among = str(tmp_path / "h.npz")
    images = sorted(photographs.rglob("*.png"))
    queries = [images[3], images[30]]
    found = Neighbours(run=run, images=queries, among=among, k=4, out=tmp_path / "rows.png", machine=MACHINE)()
    h = simclr.load(run).embed(images)
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    for query in queries:
        cosine = unit @ unit[images.index(query)]
        paths, values = zip(*found["neighbours"][str(query)], strict=True)
        assert photographs / paths[0] == query
        np.testing.assert_allclose(values, np.sort(cosine)[::-1][:4], rtol=1e-4)
        np.testing.assert_allclose(values, [cosine[images.index(photographs / path)] for path in paths], rtol=1e-4)
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.size == (5 * 68 + 12, 2 * 68 + 4)


def test_embeddings_of_another_encoder_or_of_changed_images_are_refused(run, photographs, tmp_path):
    Embed(run=run, data=str(photographs), out=tmp_path / "h.npz", machine=MACHINE)()
    query = next(photographs.rglob("*.png"))
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="other weights than those of"):
        Neighbours(run=other, images=[query], among=str(tmp_path / "h.npz"), machine=MACHINE)()
    query.rename(query.with_name("renamed.png"))
    with pytest.raises(ValueError, match="have changed since"):
        Neighbours(run=run, images=[query.with_name("renamed.png")], among=str(tmp_path / "h.npz"), machine=MACHINE)()
