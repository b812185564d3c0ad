"""Folders as they are found: links, system folders, splits of other names, nested classes."""

import os

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.folders import split_folders
from simclr.data.paths import list_images
from simclr.data.specs import why_unlabelled
from simclr.errors import DataError


def write(root, *names):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), 10 * (k % 20), np.uint8)).save(root / name, "PNG")
    return root


def paths(source):
    return [source.path(i) for i in range(len(source))]


def labels(source):
    return [source.classes[k] for k in source.labels]


def test_a_link_to_itself_is_skipped_and_named(tmp_path):
    root = write(tmp_path / "photos", "cat/1.png", "dog/2.png")
    (root / "photos").symlink_to("photos")
    source = open_source(root, "all")
    assert paths(source) == ["cat/1.png", "dog/2.png"] and source.classes == ["cat", "dog"]
    assert source.left_out.skipped.keys() == {"photos"}


def test_a_folder_that_cannot_be_read_is_skipped_and_named(tmp_path, monkeypatch, capsys):
    root = write(tmp_path / "photos", "cat/1.png", "dog/2.png", "lost+found/3.png")
    scandir = os.scandir

    def refuse(path):
        if os.fsencode(path).endswith(b"lost+found"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(root, "all")
    assert paths(source) == ["cat/1.png", "dog/2.png"]
    assert source.left_out.skipped.keys() == {"lost+found/"}
    assert "lost+found/" in capsys.readouterr().err
    with pytest.raises(DataError):
        open_source(root / "lost+found", "all")


@pytest.mark.parametrize(
    "name", ["@eaDir", ".thumbnails", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information"]
)
def test_folders_of_systems_are_no_classes(tmp_path, name):
    root = write(tmp_path, "cat/1.png", "dog/2.png", f"{name}/3.png", f"cat/{name}/4.png")
    source = open_source(root, "all")
    assert source.classes == ["cat", "dog"] and len(source) == 2


def test_a_run_below_the_images_is_not_data(tmp_path):
    root = write(tmp_path, "cat/1.png", "dog/2.png", "runs/a/views.png")
    (root / "runs" / "a" / "recipe.yaml").touch()
    assert open_source(root, "all").classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("Training", "Testing"), ("train", "validation"), ("TRAIN", "dev"), ("training", "Val")],
)
def test_splits_of_other_names(tmp_path, train, test):
    root = write(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png", f"{test}/dog/4.png")
    parts = [open_source(root, split) for split in ("train", "test")]
    assert [paths(part) for part in parts] == [
        [f"{train}/cat/1.png", f"{train}/dog/2.png"], [f"{test}/cat/3.png", f"{test}/dog/4.png"],
    ]  # fmt: skip
    assert all(part.classes == ["cat", "dog"] and part.has_own_split for part in parts)


def test_test_has_precedence_over_validation_which_is_named(tmp_path):
    root = write(tmp_path, "train/a/1.png", "train/b/2.png", "valid/a/3.png", "test/a/4.png", "more/5.png")
    assert paths(open_source(root, "test")) == ["test/a/4.png"]
    assert open_source(root, "all").left_out.skipped.keys() == {"valid/", "more/"}


def test_two_folders_of_one_split_are_an_error(tmp_path):
    root = write(tmp_path, "train/a/1.png", "Training/b/2.png", "test/a/3.png")
    with pytest.raises(DataError) as error:
        open_source(root, "all")
    assert error.value.path == str(root)
    assert split_folders(["cat", "Test", "TRAIN", "val"], root) == ("TRAIN", "Test")
    assert split_folders(["train", "dog"], root) is None


def test_splits_are_never_classes(tmp_path):
    source = open_source(write(tmp_path, "test/1.png", "valid/2.png"), "all")
    assert source.labels is None
    assert "train" in why_unlabelled(tmp_path)
    assert open_source(write(tmp_path / "vehicles", "car/1.png", "train/2.png"), "all").classes == ["car", "train"]


def test_classes_differ_in_case_between_splits_or_in_unicode_form(tmp_path):
    root = write(tmp_path / "a", "train/Cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/Dog/4.png")
    assert open_source(root, "all").classes == ["cat", "dog"]
    assert labels(open_source(root, "test")) == ["dog", "cat"]
    letters = write(tmp_path / "b", "train/A/1.png", "train/a/2.png", "test/A/3.png", "test/a/4.png")
    assert labels(open_source(letters, "train")) == ["A", "a"]
    forms = write(tmp_path / "c", "cafe\u0301/1.png", "caf\u00e9/2.png", "tea/3.png")
    assert open_source(forms, "all").classes == ["caf\u00e9", "tea"]


def test_levels_of_classes_and_groups(tmp_path):
    names = [f"{kind}/{animal}/clip{k}/{f}.png" for kind in "xy" for animal in "pq" for k in range(2) for f in range(3)]
    root = write(tmp_path, *names)
    source = open_source(f"{root}?label=2&group=3", "all")
    assert source.classes == ["p", "q"] and labels(source) == [name.split("/")[1] for name in paths(source)]
    clips = [name.rpartition("/")[0] for name in paths(source)]
    assert len(set(clips)) == len(set(source.groups.tolist())) == len(set(zip(clips, source.groups, strict=True))) == 8
    assert open_source(f"{root}?label=0", "all").labels is None
    for wrong in ("?label=x", "?group=0", "?split=1", "?levels=2"):
        with pytest.raises(DataError):
            open_source(f"{root}{wrong}", "all")


def test_a_hold_out_separates_no_group(tmp_path):
    root = write(tmp_path, *(f"{'ab'[clip % 2]}/clip{clip}/{k}.png" for clip in range(20) for k in range(1 + clip % 4)))
    train, test = (open_source(f"{root}?group=2", split) for split in ("train", "test"))
    clips = [{name.rpartition("/")[0] for name in paths(part)} for part in (train, test)]
    assert not clips[0] & clips[1] and len(clips[0] | clips[1]) == 20
    assert abs(len(test) - 0.2 * 50) <= 4


def test_a_class_of_two_large_groups_is_tested_on_one(tmp_path):
    root = write(tmp_path, *(f"{kind}/clip{clip}/{k}.png" for kind in "ab" for clip in range(2) for k in range(9)))
    train, test = (open_source(f"{root}?group=2", split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == np.bincount(test.labels).tolist() == [9, 9]


def test_other_files_are_counted_and_images_without_extension_read(tmp_path):
    root = write(tmp_path, "cat/1", "cat/2.png", "dog/3.png")
    for name in ("cat/a.txt", "cat/b.TXT", "dog/c.pdf", "dog/README"):
        (root / name).write_text("words")
    listing = list_images(root)
    assert listing.names == [b"cat/1", b"cat/2.png", b"dog/3.png"]
    assert dict(listing.ignored) == {".txt": 2, ".pdf": 1, "": 1}
    assert open_source(root, "all").read(0).shape == (6, 5, 3)


def test_one_nested_class_folder_is_explained(tmp_path):
    root = write(tmp_path, "images/cat/1.png", "images/dog/2.png")
    assert open_source(root, "all").labels is None
    assert "?label=2" in why_unlabelled(root)
    assert open_source(f"{root}?label=2", "all").classes == ["cat", "dog"]


@pytest.mark.parametrize("mark", ["card.json", "recipe.yaml"])
def test_a_run_in_place_of_images_is_named_as_such(tmp_path, mark):
    problems = set()
    for name in ("empty", "run"):
        (tmp_path / name).mkdir()
        if name == "run":
            (tmp_path / name / mark).touch()
        with pytest.raises(DataError) as refused:
            open_source(tmp_path / name, "all")
        assert refused.value.path == str(tmp_path / name)
        problems.add(refused.value.problem.partition(",")[0])
    assert len(problems) == 2
