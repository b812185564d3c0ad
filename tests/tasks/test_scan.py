"""A scan finds exactly what was put into the folder."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from simclr.errors import SettingError
from simclr.tasks import scan
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
    (root / "dog/phone.heic").write_bytes(b"x")
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
    assert report["ignored"] == {".heic": 1} and report["skipped"] == {}
    text = capsys.readouterr().out
    for name in ("zoo", "cat/3.png = dog/again.bmp", "dog/empty.jpg", ".heic", report["fingerprint"]):
        assert name in text
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
    assert report["height"] is None and report["split"] is None


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
    assert "eel" in capsys.readouterr().out
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


def test_paths_that_a_table_lists_more_than_once(folder, tmp_path, capsys):
    rows = ["cat/0.png,cat", "cat/../cat/0.png,cat", "cat/1.png,cat", "dog/again.bmp,dog"]
    (folder / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert Scan(data=str(folder / "t.csv"))()["repeated"] == {"cat/0.png": 2}
    assert "cat/0.png: 2 times" in capsys.readouterr().out
    assert Scan(data=str(folder))()["repeated"] == {}


def test_existing_lists_are_kept_unless_overwritten(folder, tmp_path, monkeypatch):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "images.csv").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(scan, "survey", None)  # refused before any image is read
        with pytest.raises(SettingError) as error:
            Scan(data=str(folder), out=out)()
    assert error.value.field == "out" and (out / "images.csv").read_text() == "mine"
    Scan(data=str(folder), out=out, overwrite=True)()
    assert (out / "images.csv").read_text() != "mine"
    (tmp_path / "file").touch()
    with pytest.raises(SettingError) as error:
        Scan(data=str(folder), out=tmp_path / "file")()
    assert error.value.field == "out"


def test_names_that_are_not_text_are_escaped(tmp_path, capsys):
    for name in (b"caf\xe9.png", b"bell\x07\x1b[31m.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"not an image")
    report = Scan(data=str(tmp_path))()
    assert len(report["bad"]) == 2
    text = capsys.readouterr().out
    assert "caf\\xe9.png" in text and "bell\\x07\\x1b[31m.png" in text
    assert text.encode() and text.replace("\n", "").isprintable()


def test_rare_classes_groups_and_folders_that_are_left_out(tmp_path, capsys):
    for name in ("a/x/1", "a/x/2", "a/y/3", "b/x/1", "c/z/4", "c/z/5", "@eaDir/6"):
        (tmp_path / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    report = Scan(data=f"{tmp_path}?group=2")()
    assert report["classes"] == {"a": 3, "b": 1, "c": 2} and report["groups"] == 4
    assert report["skipped"].keys() == {"@eaDir/"} and "@eaDir/" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, -2])
def test_the_number_of_workers_is_checked(workers):
    with pytest.raises(SettingError) as error:
        Scan(data="sample", workers=workers)
    assert error.value.field == "workers"


def test_an_interrupted_scan_is_completed_by_the_same_command(folder, tmp_path, monkeypatch):
    out = tmp_path / "report"
    monkeypatch.setattr(scan, "write_rows", lambda *arguments: 1 / 0)
    monkeypatch.setattr("pathlib.Path.unlink", lambda *arguments, **options: None)  # a kill removes nothing
    with pytest.raises(ZeroDivisionError):
        Scan(data=str(folder), out=out)()
    monkeypatch.undo()
    assert sorted(os.listdir(out)) == ["bad_files.csv", "duplicates.csv", "images.csv.partial"]
    Scan(data=str(folder), out=out)()
    assert sorted(os.listdir(out)) == ["bad_files.csv", "duplicates.csv", "images.csv"]
    with pytest.raises(SettingError) as error:
        Scan(data=str(folder), out=out)()
    assert error.value.field == "out"
