"""Existing files are kept, and paths that cannot be written are refused before anything is computed."""

import os

import numpy as np
import pytest
from PIL import Image

from simclr.errors import SettingError
from simclr.runs.files import (
    guard_cell,
    number_existing,
    replacing,
    require_file_path,
    require_folder_path,
    require_new_file,
    require_own_folder,
    require_picture_path,
    save_picture,
    unguard_cell,
    write_table,
    write_together,
    write_unreadable,
)


def test_a_folder_is_no_file_and_keeps_its_name(tmp_path):
    (tmp_path / "flat").mkdir()
    with pytest.raises(SettingError):
        require_file_path(tmp_path / "flat")
    with pytest.raises(SettingError):
        require_new_file(tmp_path / "flat")
    with pytest.raises(SettingError):
        number_existing(tmp_path / "flat")
    assert os.listdir(tmp_path) == ["flat"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "afile").touch()
    with pytest.raises(SettingError):
        require_folder_path(tmp_path / "afile")
    with pytest.raises(SettingError):
        require_file_path(tmp_path / "afile" / "knn.json")
    with pytest.raises(SettingError):
        require_new_file(tmp_path / "afile")
    assert require_new_file(tmp_path / "afile", overwrite=True) == tmp_path / "afile"


def test_a_place_that_cannot_be_written_is_refused_and_one_that_can_is_not_made(tmp_path, monkeypatch):
    assert require_file_path(tmp_path / "new" / "deep" / "x.json") == tmp_path / "new" / "deep" / "x.json"
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SettingError):
        require_file_path(tmp_path / "new" / "x.json")
    with pytest.raises(SettingError):
        require_folder_path(tmp_path / "new")


def test_a_folder_of_files_of_another_origin_is_refused(tmp_path):
    folder = tmp_path / "folder"
    assert require_own_folder(folder, str.isdigit) == folder
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".DS_Store").touch()
    assert require_own_folder(folder, str.isdigit) == folder
    (folder / "a.png").touch()
    with pytest.raises(SettingError) as refused:
        require_own_folder(folder, str.isdigit)
    assert refused.value.field == "out"
    (folder / "1").touch()
    assert require_own_folder(folder, str.isdigit) == folder


def test_older_files_get_the_next_number(tmp_path):
    for k in range(3):
        number_existing(tmp_path / "knn.json")
        (tmp_path / "knn.json").write_text(str(k))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "knn.1.json": "0", "knn.2.json": "1", "knn.json": "2",
    }  # fmt: skip


def test_a_folder_gets_the_number_of_the_file_that_it_belongs_to(tmp_path):
    file, folder = tmp_path / "linear-0.1.json", tmp_path / "linear-0.1"
    assert number_existing(file, folder) is None
    (tmp_path / "linear-0.1.1.json").write_text("without a folder")
    for k in range(2):
        folder.mkdir()
        (folder / "card.json").write_text(str(k))
        file.write_text(str(k))
        assert number_existing(file, folder) == tmp_path / f"linear-0.1.{k + 2}"
        assert (tmp_path / f"linear-0.1.{k + 2}" / "card.json").read_text() == str(k)
        assert (tmp_path / f"linear-0.1.{k + 2}.json").read_text() == str(k)
    assert len(os.listdir(tmp_path)) == 5


def test_a_picture_has_a_form(tmp_path):
    assert require_picture_path(tmp_path / "a.PNG") == tmp_path / "a.PNG"
    with pytest.raises(SettingError):
        require_picture_path(tmp_path / "sheet")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"ne", "text"])
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.bin"]
    (tmp_path / "x.bin.partial").write_bytes(b"what a killed command left")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["x.bin"]


def test_tables_and_pictures_are_replaced_as_a_whole(tmp_path):
    path, picture = tmp_path / "x.csv", tmp_path / "x.JPG"
    write_table(path, ("a", "b"), [("1", "\udcff")])
    with pytest.raises(ZeroDivisionError):
        write_table(path, ("a", "b"), ((1 / 0, k) for k in range(2)))
    assert path.read_bytes() == b"a,b\r\n1,\xff\r\n"
    save_picture(Image.fromarray(np.zeros((3, 4, 3), np.uint8)), picture)
    with Image.open(picture) as image:
        assert image.format == "JPEG"
    assert sorted(os.listdir(tmp_path)) == ["x.JPG", "x.csv"]


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    for name in ["=1+1.png", "+a", "-b", "@c", "'=d", "'plain", "a=b", "", "\tx"]:
        assert unguard_cell(guard_cell(name)) == name
        assert not guard_cell(name).startswith(("=", "+", "-", "@", "\t"))
    assert guard_cell(-1.5) == -1.5
    write_unreadable(tmp_path / "bad_files.csv", {"=cmd|' /C calc'!A0.png": "-"})
    assert (tmp_path / "bad_files.csv").read_text().splitlines()[1].startswith("'=cmd")


def test_files_that_belong_together_are_numbered_unless_they_are_what_an_interrupted_command_left(tmp_path):
    (tmp_path / "v2.svg").write_text("of the user")
    write_together(tmp_path, {"v2.svg": "figure", "v2.json": "1"})
    assert (tmp_path / "v2.1.svg").read_text() == "of the user"
    (tmp_path / "v2.json").unlink()
    write_together(tmp_path, {"v2.svg": "figure", "v2.json": "1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v2.1.svg", "v2.json", "v2.svg"]
    write_together(tmp_path, {"v2.svg": "figure", "v2.json": "2"})
    assert (tmp_path / "v2.2.svg").read_text() == "figure"
    assert (tmp_path / "v2.2.json").read_text() == "1"
