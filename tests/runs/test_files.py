"""Existing files are kept, and paths that cannot be written are refused before anything is computed."""

import os

import pytest

from simclr.errors import SettingError
from simclr.runs.files import (
    number_existing,
    require_file_path,
    require_folder_path,
    require_new_file,
    require_picture_path,
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


def test_older_files_get_the_next_number(tmp_path):
    for k in range(3):
        number_existing(tmp_path / "knn.json")
        (tmp_path / "knn.json").write_text(str(k))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "knn.1.json": "0", "knn.2.json": "1", "knn.json": "2",
    }  # fmt: skip


def test_a_picture_has_a_form(tmp_path):
    assert require_picture_path(tmp_path / "a.PNG") == tmp_path / "a.PNG"
    with pytest.raises(SettingError):
        require_picture_path(tmp_path / "sheet")
