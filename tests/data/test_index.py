"""The kept index of a folder is what reading the folder would give, at any time."""

import os

import numpy as np
import pytest

from simclr.data import folders, index
from simclr.data import specs as opening

DAY = 86_400_000_000_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes of three images, long unchanged; indices of any size are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    root = tmp_path / "images"
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "b/é.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    age(root)
    return root


def age(root):
    for path, _, _ in os.walk(root):
        os.utime(path, ns=(DAY, DAY))


@pytest.fixture
def readings(monkeypatch):
    """How often a folder tree has been read."""
    found = []
    original = folders.list_images
    monkeypatch.setattr(folders, "list_images", lambda *a: found.append(1) or original(*a))
    return found


def contents(source):
    names = [source.path(i) for i in range(len(source))]
    return names, source.classes, None if source.labels is None else source.labels.tolist()


@pytest.mark.parametrize("split", ["all", "train", "test"])
@pytest.mark.parametrize("own", [False, True])
def test_the_second_start_reads_no_folder_and_finds_the_same(folder, readings, split, own):
    if own:
        for part in ("train", "test"):
            (folder / part).mkdir()
            for name in ("a", "b"):
                (folder / part / name).mkdir()
                for k in range(9):
                    (folder / part / name / f"{k}.png").touch()
        age(folder)
    first, second = opening.open_source(folder, split), opening.open_source(folder, split)
    assert contents(first) == contents(second)
    assert first.has_own_split == second.has_own_split == own
    assert len(readings) == 1


@pytest.mark.parametrize("change", ["add", "remove", "rename", "folder"])
def test_any_change_is_noticed(folder, readings, change):
    before = contents(opening.open_source(folder, "all"))
    match change:
        case "add":
            (folder / "b" / "9.png").touch()
        case "remove":
            (folder / "a" / "2.png").unlink()
        case "rename":
            (folder / "a" / "2.png").rename(folder / "a" / "8.png")
        case "folder":
            (folder / "c").mkdir()
            (folder / "c" / "1.png").touch()
    after = contents(opening.open_source(folder, "all"))
    assert after != before and len(readings) == 2


def test_a_folder_that_has_just_changed_is_not_kept(folder, readings):
    (folder / "a" / "4.png").touch()
    for _ in range(2):
        opening.open_source(folder, "all")
    assert len(readings) == 2


def test_small_folders_are_not_kept(folder, readings, monkeypatch):
    monkeypatch.setattr(index, "MIN_IMAGES", 7)
    for _ in range(2):
        opening.open_source(folder, "all")
    assert len(readings) == 2


def test_a_damaged_or_unwritable_cache_does_no_harm(folder, tmp_path, monkeypatch):
    expected = contents(opening.open_source(folder, "all"))
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert contents(opening.open_source(folder, "all")) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "a" / "1.png"))
    assert contents(opening.open_source(folder, "all")) == expected
    assert np.array_equal(expected[2], [0, 0, 0, 1, 1, 1])
