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


def test_a_number_of_workers_that_makes_no_sense():
    with pytest.raises(ValueError, match="workers is 0; allowed are -1 and positive"):
        Scan(data="sample", workers=0)
