"""Explorations end to end: planted structure is found, and what is written can be read by other programs."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.evaluated import write_encoder, write_folder

import simclr
from simclr.cli import main
from simclr.data import open_source
from simclr.data.embeddings import Embeddings, read_embeddings
from simclr.data.paths import Paths
from simclr.data.source import Arrays
from simclr.errors import DataError, RunError, SettingError
from simclr.evaluation import distances
from simclr.evaluation.neighbours import nearest
from simclr.runs.machine import Device
from simclr.tasks.explore import collection

MACHINE = Device(accelerator="cpu", workers=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("runs") / "encoder")


@pytest.fixture
def photographs(tmp_path):
    return write_folder(tmp_path / "photographs")


@pytest.fixture
def vectors(tmp_path):
    """Embeddings of three classes without images: vectors of one class are similar."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["cat", "dog", "owl"], 40)
    centre = {"cat": 0, "dog": 1, "owl": 2}
    features = 3 * np.eye(8)[[centre[y] for y in labels]] + rng.standard_normal((120, 8))
    names = np.array([f"{y}{i}.jpg" for i, y in enumerate(labels)])
    np.savez(tmp_path / "vectors.npz", features=features.astype(np.float32), paths=names, labels=labels)
    return tmp_path / "vectors.npz"


def table(path: Path) -> dict[str, list[str]]:
    """Columns of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def check_page(path: Path, images: bool) -> None:
    """A page runs no script and needs no other file."""
    text = path.read_text("utf-8")
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert ("data:image/jpeg" in text) == images


def test_copies_and_near_copies_of_files_are_found_by_pixels_and_by_embedding(run, photographs):
    first, second = sorted((photographs / "train").rglob("*.png"))[:2]
    shutil.copy(first, first.with_name("copy.png"))
    pixels = np.asarray(Image.open(second)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(second.with_name("near.png"))
    task = simclr.Duplicates(run=run, data=str(photographs), out=photographs.parent / "d.csv", machine=MACHINE)
    found = task()
    rows = table(found["out"])
    kinds = {Path(path).name: kind for path, kind in zip(rows["path"], rows["kind"], strict=True)}
    assert kinds == {first.name: "exact", "copy.png": "exact", second.name: "copy", "near.png": "copy"}
    assert sorted(rows["keep"]) == ["False", "False", "True", "True"]
    assert found["groups"] == found["duplicates"] == 2
    check_page(found["page"], images=True)
    with pytest.raises(SettingError) as refused:
        task()
    assert refused.value.field == "out"
    assert replace(task, overwrite=True)()["groups"] == 2


def test_test_images_among_the_training_images_are_leaks(run, photographs):
    leaked = sorted((photographs / "test").rglob("*.png"))[4]
    shutil.copy(leaked, photographs / "train" / leaked.parent.name / "leaked.png")
    found = simclr.Embed(run=run, data=str(photographs), out=photographs.parent / "e.npz", machine=MACHINE)()
    rows = table(simclr.Leaks(run=found["out"])()["out"])
    assert [Path(path).name for path in rows["path"]] == [leaked.name]
    assert [Path(path).name for path in rows["train_path"]] == ["leaked.png"]
    assert rows["kind"] == ["exact"]


def shown(photograph: Image.Image, folder: Path, name: str, split: str = "train") -> None:
    (folder / split / "a").mkdir(parents=True, exist_ok=True)
    photograph.save(folder / split / "a" / name, quality=40)


def test_changed_copies_are_found_by_their_pixels_where_embeddings_say_nothing(tmp_path):
    """Photographs, with resized, compressed and mirrored copies, and embeddings that are random."""
    source, folder = open_source("sample", "train"), tmp_path / "photographs"
    images = [Image.fromarray(source.read(i)).resize((64, 64), Image.Resampling.BICUBIC) for i in range(12)]
    for i, image in enumerate(images):
        shown(image, folder, f"{i}.png")
    shown(images[0].resize((40, 40), Image.Resampling.BICUBIC), folder, "resized.png")
    shown(images[1], folder, "compressed.jpg")
    shown(ImageOps.mirror(images[2]), folder, "mirrored.png", "test")
    shown(images[3].rotate(90), folder, "rotated.png", "test")
    data = open_source(str(folder), "all")
    names = [data.path(i) for i in range(len(data))]
    features = np.random.default_rng(0).standard_normal((len(data), 64)).astype(np.float32)
    np.savez(tmp_path / "e.npz", features=features, paths=np.array(names))
    where = {"run": tmp_path / "e.npz", "data": str(folder), "overwrite": True}
    rows = table(simclr.Duplicates(**where)()["out"])
    groups = [{Path(p).name for p, g in zip(rows["path"], rows["group"], strict=True) if g == n} for n in "012"]
    assert sorted(map(sorted, groups)) == [["0.png", "resized.png"], ["1.png", "compressed.jpg"],
                                           ["2.png", "mirrored.png"]]  # fmt: skip
    assert set(rows["kind"]) == {"copy"}
    assert simclr.Duplicates(**where, pictures=False)()["groups"] == 0
    rows = table(simclr.Leaks(**where)()["out"])
    assert [(Path(rows["path"][0]).name, Path(rows["train_path"][0]).name)] == [("mirrored.png", "2.png")]
    pair = [names.index(rows[column][0]) for column in ("path", "train_path")]
    unit = features[pair] / np.linalg.norm(features[pair], axis=1, keepdims=True)
    assert float(rows["distance"][0]) == pytest.approx(np.linalg.norm(unit[0] - unit[1]), rel=1e-5)
    assert rows["kind"] == ["copy"]


def test_a_neighbour_that_an_approximate_search_missed_makes_no_outlier(vectors, monkeypatch):
    def missing(bank, queries, k, recall):
        cosines, rows = nearest(bank, queries, k)
        rows[3] = (torch.arange(k) + 60) % len(bank)  # of the other class
        return cosines, rows, 0.99

    monkeypatch.setattr(distances, "nearest_approximate", missing)
    monkeypatch.setattr(collection, "find_spec", lambda name: name)
    exact = table(simclr.Outliers(run=vectors, backend="exact")()["out"])
    found = table(simclr.Outliers(run=vectors, backend="faiss", overwrite=True)()["out"])
    assert found["path"] == exact["path"]
    assert [float(x) for x in found["score"]] == pytest.approx([float(x) for x in exact["score"]], abs=1e-6)


def test_a_planted_outlier_and_a_planted_label_error_come_first(vectors):
    content = dict(np.load(vectors))
    content["features"][7] = -5 * np.eye(8, dtype=np.float32)[7]
    content["labels"][100] = "cat"  # an owl
    np.savez(vectors, **content)
    found = simclr.Outliers(run=vectors)()
    rows = table(found["out"])
    assert (rows["path"][0], rows["outlier"][0], len(rows["path"])) == ("cat7.jpg", "True", 120)
    check_page(found["page"], images=False)
    found = simclr.Labels(run=vectors, engine="confidence")()
    rows = table(found["out"])
    assert "owl100.jpg" in rows["path"][:2]  # the outlier is the other one
    at = rows["path"].index("owl100.jpg")
    assert (rows["label"][at], rows["suggested"][at], rows["suspect"][at]) == ("cat", "owl", "True")


def test_picks_continue_from_earlier_ones_and_use_their_labels(vectors, tmp_path):
    first = simclr.Pick(run=vectors, budget=3, out=tmp_path / "1.csv")()
    assert first["method"] == "typical"
    assert first["coverage"] < first["random"]
    assert sorted(table(first["out"])["label"]) == ["cat", "dog", "owl"]
    second = simclr.Pick(run=vectors, budget=30, after=[first["out"]], out=tmp_path / "2.csv")()
    third = simclr.Pick(run=vectors, budget=5, after=[first["out"], second["out"]], out=tmp_path / "3.csv")()
    assert third["method"] == "margin"
    picked = [path for name in "123" for path in table(tmp_path / f"{name}.csv")["path"]]
    assert len(set(picked)) == len(picked) == 38
    with pytest.raises(SettingError) as refused:
        simclr.Pick(run=vectors, budget=121, out=tmp_path / "4.csv")()
    assert refused.value.field == "budget"
    with pytest.raises(SettingError) as refused:
        simclr.Pick(run=vectors, budget=1, method="margin", out=tmp_path / "4.csv")()
    assert refused.value.field == "after"


def test_picked_images_with_their_labels_are_a_data_set(run, photographs, tmp_path):
    simclr.Embed(run=run, data=str(photographs), part="train", out=tmp_path / "e.npz", machine=MACHINE)()
    file = tmp_path / "picks" / "first.csv"
    simclr.Pick(run=tmp_path / "e.npz", budget=20, out=file)()
    rows = list(csv.DictReader(file.read_text().splitlines()))
    by_hand = [f"{row['path']},{Path(row['path']).parent.name}" for row in rows]
    file.write_text("\n".join(["path,label", *by_hand]))
    picked = open_source(str(file), "all")
    assert [(picked.root / row["path"]).is_file() for row in rows] == [True] * 20
    second = simclr.Pick(run=tmp_path / "e.npz", budget=10, after=[file], out=tmp_path / "second.csv")()
    files = [(tmp_path / path).resolve() for path in table(second["out"])["path"]]
    assert not {(file.parent / row["path"]).resolve() for row in rows} & set(files)
    words = ["--machine.accelerator", "cpu", "--machine.workers", "0", "--out", str(tmp_path / "linear.json")]
    assert main(["linear", str(run), str(file), *words]) == 0


def test_earlier_picks_may_have_the_names_of_a_collection(run, photographs, tmp_path):
    simclr.Embed(run=run, data=str(photographs), part="train", out=tmp_path / "e.npz", machine=MACHINE)()
    names = read_embeddings(tmp_path / "e.npz").paths
    (tmp_path / "old.csv").write_text("\n".join(["path,label", *names[:-5]]))
    task = simclr.Pick(run=tmp_path / "e.npz", budget=5, after=[tmp_path / "old.csv"], out=tmp_path / "new.csv")
    assert {Path(path).name for path in table(task()["out"])["path"]} == {Path(name).name for name in names[-5:]}


@pytest.mark.parametrize("task", [simclr.Duplicates, simclr.Map, simclr.Outliers, simclr.Pick])
def test_images_are_found_beside_the_embeddings(run, photographs, tmp_path, monkeypatch, capsys, task):
    monkeypatch.chdir(tmp_path)
    simclr.Embed(run=run, data=photographs.name, out=tmp_path / "e.npz", machine=MACHINE)()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    few = {"budget": 3} if task is simclr.Pick else {}
    check_page(task(run=Path("../e.npz"), out=Path("a.csv"), **few)()["page"], images=task is not simclr.Duplicates)
    assert collection.find_images(read_embeddings(Path("../e.npz")), Path("../e.npz")) is not None
    assert capsys.readouterr().err == ""
    next(photographs.rglob("*.png")).unlink()
    check_page(task(run=Path("../e.npz"), out=Path("b.csv"), **few)()["page"], images=False)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_neither_embeddings_nor_a_run_is_named(run, photographs, tmp_path):
    for path, data in ((tmp_path / "no.npz", None), (tmp_path / "no.npz", str(photographs)), (photographs, None)):
        with pytest.raises(RunError) as refused:
            simclr.Duplicates(run=path, data=data)()
        assert refused.value.path == str(path)


def test_a_map_has_a_point_for_each_image(vectors, tmp_path):
    found = simclr.Map(run=vectors, out=tmp_path / "map.csv")()
    rows = table(found["out"])
    x = np.load(vectors)["features"].astype(np.float64)
    left, singular, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    points = np.stack([np.array(rows[name], float) for name in "xy"], 1)
    np.testing.assert_allclose(np.abs(points), np.abs(left * singular)[:, :2], atol=1e-4)
    assert set(rows["label"]) == {"cat", "dog", "owl"}


@pytest.mark.parametrize("kept", [True, False])
def test_search_is_brute_force(run, photographs, tmp_path, kept):
    bank = {"run": run, "data": str(photographs)}
    if kept:
        simclr.Embed(run=run, data=str(photographs), out=tmp_path / "e.npz", machine=MACHINE)()
        bank = {"run": tmp_path / "e.npz", "encoder": str(run)}
    images = sorted(photographs.rglob("*.png"))
    unit = simclr.load(run).embed(images)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for query, numbers in ((images[3], [3]), (photographs / "test", range(15))):
        task = simclr.Search(**bank, query=str(query), k=4, out=tmp_path / "s.csv", overwrite=True, machine=MACHINE)
        found = task()
        rows = table(found["out"])
        cosines = np.array(rows["cosine"], float).reshape(-1, 4)
        np.testing.assert_allclose(cosines, -np.sort(-unit[list(numbers)] @ unit.T)[:, :4], rtol=1e-4)
        assert (photographs / rows["path"][0]).read_bytes() == images[numbers[0]].read_bytes()
        check_page(found["page"], images=True)
    if kept:
        other = write_encoder(tmp_path / "other", seed=1)
        with pytest.raises(DataError):
            replace(task, encoder=str(other))()


def test_search_of_vectors_needs_no_encoder(vectors, tmp_path):
    np.save(tmp_path / "queries.npy", 2 * np.load(vectors)["features"][[5, 50]])
    found = simclr.Search(run=vectors, query=str(tmp_path / "queries.npy"), k=2, out=tmp_path / "s.csv")()
    assert table(found["out"])["path"][::2] == ["cat5.jpg", "dog50.jpg"]
    with pytest.raises(SettingError) as refused:
        simclr.Search(run=vectors, query="query.jpg")()
    assert refused.value.field == "encoder"


def test_the_data_of_embeddings_are_matched_by_name_or_by_number(run, photographs, tmp_path):
    simclr.Embed(run=run, data=str(photographs), out=tmp_path / "e.npz", machine=MACHINE)()
    features = np.load(tmp_path / "e.npz")["features"]
    np.save(tmp_path / "plain.npy", features.astype(np.float16))
    found = simclr.Labels(run=tmp_path / "plain.npy", data=str(photographs), engine="confidence")()
    assert set(table(found["out"])["label"]) == {"class0", "class1", "class2"}
    check_page(found["page"], images=True)
    np.save(tmp_path / "fewer.npy", features[1:])
    with pytest.raises(DataError) as refused:
        simclr.Outliers(run=tmp_path / "fewer.npy", data=str(photographs))()
    assert refused.value.path == str(tmp_path / "fewer.npy")


def test_embeddings_of_a_split_whose_images_are_numbered_from_0_are_of_its_images(monkeypatch):
    """The test images of many data sets of torchvision have the names 0, 1, ... as the training images do."""
    parts = {
        split: Arrays(name="t", split=split, paths=Paths.numbered("", n), pixels=np.zeros((n, 2, 2, 3), np.uint8))
        for split, n in (("all", 5), ("test", 2))
    }
    monkeypatch.setattr(collection, "open_source", lambda data, split: parts[split])
    content = Embeddings(np.zeros((2, 3)), ["0", "1"], data=("torchvision:T:.", "test"), indices=np.arange(2))
    source, rows = collection.images_of(content, "torchvision:T:.", Path("e.npz"))
    assert source.split == "test" and rows.tolist() == [0, 1]
    assert collection.images_of(content, "other", Path("e.npz"))[0].split == "all"


@pytest.mark.parametrize(
    "content", [np.zeros((0, 3)), np.zeros(5), np.full((4, 2), np.nan), np.array([["a", "b"]]), np.zeros((2, 3, 4))]
)
def test_files_that_hold_no_embeddings_are_refused(tmp_path, content):
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(DataError) as refused:
        read_embeddings(tmp_path / "bad.npy")
    assert refused.value.path == str(tmp_path / "bad.npy")


def test_questions_without_labels_splits_or_data_are_refused(tmp_path, run):
    np.save(tmp_path / "x.npy", np.eye(4))
    for task in (simclr.Labels, simclr.Leaks):
        with pytest.raises(DataError):
            task(run=tmp_path / "x.npy")()
    with pytest.raises(SettingError) as refused:
        simclr.Map(run=run)()
    assert refused.value.field == "data"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_pandas_reads_every_table_and_embeddings_in_parquet(vectors, run, photographs, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frames = []
    for kind, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        found = simclr.Outliers(run=vectors, out=tmp_path / kind / f"outliers.{kind}")()
        frames.append(read(found["out"]))
    pandas.testing.assert_frame_equal(*frames, check_dtype=False)
    assert frames[0].outlier.dtype == bool
    found = simclr.Embed(run=run, data=str(photographs), out=tmp_path / "e.parquet", machine=MACHINE)()
    frame = pandas.read_parquet(found["out"])
    expected = simclr.load(run).embed([photographs / name for name in frame.path])
    np.testing.assert_allclose(np.stack(frame.features), expected, rtol=1e-4, atol=1e-6)
    assert [Path(path).parts[:2] for path in frame.path] == list(zip(frame.split, frame.label, strict=True))
    again = read_embeddings(tmp_path / "e.parquet")
    np.testing.assert_array_equal(again.features, np.stack(frame.features))
    assert [again.annotation[1][y] for y in again.annotation[0]] == frame.label.tolist()


def test_umap_is_the_same_for_the_same_seed(vectors, tmp_path):
    pytest.importorskip("umap")
    tables = [
        simclr.Map(run=vectors, projection="umap", out=tmp_path / f"{k}.csv")()["out"].read_text() for k in range(2)
    ]
    assert tables[0] == tables[1]


def test_commands_of_two_words(vectors, capsys):
    assert main(["explore", "outliers", str(vectors), "--k", "3"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert main(["explore", "map", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: simclr explore map RUN [DATA]")
    assert main(["explore", "nothing"]) == 2
    assert "explore map" in capsys.readouterr().err
