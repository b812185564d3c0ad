"""A scan finds exactly what was put into the folder."""

import csv

import numpy as np
import pytest
from PIL import Image

from simclr.tasks.scan import Scan


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "zoo"
    colours = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for k in range(5):
        Image.fromarray(colours[k]).save(root / f"cat/{k}.png")
    Image.fromarray(colours[3]).save(root / "dog/again.bmp")
    Image.fromarray(colours[5, :10]).save(root / "dog/small.jpg")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100).save(root / "dog/deep.png")
    (root / "dog/empty.jpg").write_bytes(b"")
    (root / "dog/half.png").write_bytes((root / "cat/0.png").read_bytes()[:600])
    return root


def test_the_report(folder, tmp_path, capsys):
    report = Scan(data=str(folder), out=tmp_path / "report")()
    assert report["images"] == 10
    assert report["height"] == {"min": 10, "median": 20.0, "max": 20}
    assert report["width"] == {"min": 20, "median": 30.0, "max": 30}
    assert report["forms"] == {
        "PNG RGB 8 bit": 5,
        "BMP RGB 8 bit": 1,
        "JPEG RGB 8 bit": 1,
        "PNG I;16 16 bit": 1,
    }
    assert report["classes"] == {"cat": 5, "dog": 5}
    assert report["duplicates"] == [["cat/3.png", "dog/again.bmp"]]
    assert report["bad"].keys() == {"dog/empty.jpg", "dog/half.png"}
    assert report["bad"]["dog/empty.jpg"] == "empty file"
    text = capsys.readouterr().out
    for line in (
        "zoo: 10 images",
        "height     10 to 20 px, median 20",
        "2 classes of 5 to 5 images",
        "1 exact duplicates",
        "cat/3.png = dog/again.bmp",
        "2 unreadable",
        "dog/empty.jpg: empty file",
    ):
        assert line in text
    rows = {
        name: list(csv.reader((tmp_path / f"report/{name}.csv").read_text().splitlines()))
        for name in ("bad_files", "duplicates", "images")
    }
    assert [row[0] for row in rows["bad_files"]] == ["path", "dog/empty.jpg", "dog/half.png"]
    assert rows["duplicates"] == [["group", "path"], ["0", "cat/3.png"], ["0", "dog/again.bmp"]]
    assert len(rows["images"]) == 9
    assert ["dog/small.jpg", "10", "30", "JPEG RGB 8 bit"] in rows["images"]


def test_a_folder_without_labels_and_one_without_a_readable_image(tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(b"")
    report = Scan(data=str(tmp_path))()
    assert report["classes"] is None
    assert report["height"] is None
    assert "no labels" in capsys.readouterr().out


def test_the_bundled_sample_has_both_parts_and_balanced_classes(capsys):
    report = Scan(data="sample")()
    assert report["images"] == 6500
    assert set(report["classes"].values()) == {650}
    assert not report["bad"]


def test_the_parts_and_what_the_training_part_lacks(tmp_path, capsys):
    for path in ("train/cat/1", "train/dog/2", "test/cat/3", "test/eel/4", "test/eel/5"):
        (tmp_path / "zoo" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "zoo" / f"{path}.png")
    report = Scan(data=str(tmp_path / "zoo"))()
    assert report["split"] == {"train": 2, "test": 3, "own": True, "absent": ["eel"]}
    text = capsys.readouterr().out
    assert "train 2, test 3: its own split" in text
    assert "no training image of the class eel" in text
    report = Scan(data=str(tmp_path / "zoo" / "train"))()
    assert report["split"] is None or not report["split"]["own"]


def test_several_classes_of_an_image_are_counted_one_by_one(tmp_path):
    rows = ["path,label"]
    for i in range(12):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{('Leopards|big', 'big|', '')[i % 3]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    report = Scan(data=str(tmp_path / "table.csv"))()
    assert report["classes"] == {"Leopards": 4, "big": 8} and report["unlabelled"] == 4


def test_lists_that_are_there_are_kept_and_the_scan_refused_before_it_looks(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Scan, "_look", None)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "images.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"images\.csv exists already"):
        Scan(data=str(folder), out=tmp_path / "precious")()
    assert (tmp_path / "precious" / "images.csv").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out is a folder; .*file is a file"):
        Scan(data=str(folder), out=tmp_path / "file")()


def test_a_number_of_workers_that_makes_no_sense():
    with pytest.raises(ValueError, match="workers is 0; allowed are -1 and positive"):
        Scan(data="sample", workers=0)
