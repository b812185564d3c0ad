"""A data set that cannot be opened is an error of the data, which names it; missing labels are explained."""

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.specs import GRAMMAR, labels_for, open_for_pretraining, split_options, why_unlabelled
from simclr.errors import DataError, SettingError


def file(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda d: d / "nowhere", "nowhere"),
        (lambda d: d, ""),
        (lambda d: file(d, "x.pdf", "x"), "x.pdf"),
        (lambda d: file(d, "x.txt", "\n"), "x.txt"),
        (lambda d: file(d, "x.txt", "gone.png"), "x.txt"),
        (lambda d: file(d, "x.csv", "file\na.png"), "x.csv"),
        (lambda d: file(d, "x.csv", "label,path\na"), "x.csv"),
        (lambda d: file(d, "x.csv", "path,split\na,holdout"), "x.csv"),
        (lambda d: file(d, "x.npz", "no"), "x.npz"),
        (lambda d: (np.savez(d / "x.npz", images=np.zeros((2, 2))), d / "x.npz")[1], "x.npz"),
        (lambda d: (np.savez(d / "x.npz", x=np.zeros(2)), d / "x.npz")[1], "x.npz"),
        (lambda d: f"cifar10:{d}", "cifar10:"),
        (lambda d: f"torchvision:Nothing:{d}", "torchvision:Nothing"),
        (lambda d: "torchvision:MNIST", "torchvision:MNIST"),
        (lambda d: "", "data"),
        (lambda d: 7, "data"),
        (lambda d: [], "list"),
        (lambda d: [np.zeros(3)], "list"),
    ],
)
def test_what_cannot_be_opened_is_named_in_one_line(tmp_path, make, path):
    with pytest.raises(DataError) as error:
        open_source(make(tmp_path))
    assert path in error.value.path and "\n" not in str(error.value)


def test_an_unknown_split_is_refused():
    with pytest.raises(SettingError) as error:
        open_source("sample", "dev")
    assert error.value.field == "split"


@pytest.mark.parametrize(
    ("files", "spec", "named"),
    [
        (["train/cat/1", "train/dog/2"], "", ("train/", "test/", "val/")),
        (["Val/cat/1", "Val/dog/2"], "", ("Val/", "train/")),
        (["a/1", "a/2"], "", ("a",)),
        (["a/1", "b/2", "loose"], "", ("loose.png",)),
        (["train/a/1", "test/a/2"], "", ("a",)),
        (["train/a/1", "train/b/1", "test/2"], "", ("test/2.png",)),
        (["1"], "table.csv", ("table.csv?label=",)),
        (["1"], "empty.csv", ("label",)),
        (["1"], "list.txt", ("FILE.csv",)),
    ],
)
def test_missing_labels_are_explained_by_names(tmp_path, files, spec, named):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text("path,species\n1.png,cat")
    (tmp_path / "empty.csv").write_text("path,label\n1.png,")
    (tmp_path / "list.txt").write_text("1.png")
    source = open_source(tmp_path / spec, "all")
    assert source.labels is None
    reason = why_unlabelled(tmp_path / spec)
    assert all(name in reason for name in named)
    with pytest.raises(DataError) as error:
        labels_for("a task", source, tmp_path / spec)
    assert error.value.path == source.name and reason in str(error.value)


def test_items_and_named_sets_without_labels_are_explained():
    assert why_unlabelled([1, 2]) and why_unlabelled("torchvision:X:dir") and GRAMMAR


def test_options_follow_the_last_question_mark(tmp_path):
    assert split_options("a?b.csv?path=x y&label=z") == ("a?b.csv", {"path": "x y", "label": "z"})
    assert split_options("photos") == ("photos", {})
    (tmp_path / "what?label=1").mkdir()
    assert split_options(str(tmp_path / "what?label=1")) == (str(tmp_path / "what?label=1"), {})


def test_pretraining_needs_two_images(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    with pytest.raises(DataError) as error:
        open_for_pretraining(tmp_path)
    assert error.value.path == tmp_path.name
