"""A data set that cannot be opened is told in one line, with what is allowed."""

import shutil

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.specs import why_unlabelled
from simclr.evaluation.protocol import labelled


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nowhere", "does not exist; data can be a folder"),
        (lambda d: d, "holds no image files"),
        (lambda d: (d / "x.pdf", (d / "x.pdf").write_text("x"))[0], "is not a data set"),
        (lambda d: (d / "x.txt", (d / "x.txt").write_text("\n"))[0], "names no images"),
        (lambda d: (d / "x.txt", (d / "x.txt").write_text("gone.png"))[0], r"'gone\.png' does not exist"),
        (lambda d: (d / "x.csv", (d / "x.csv").write_text("file\na.png"))[0], "no column 'path'"),
        (lambda d: (d / "x.csv", (d / "x.csv").write_text("label,path\na"))[0], "line 2: no path"),
        (
            lambda d: (d / "x.csv", (d / "x.csv").write_text("path,split\na,dev"))[0],
            "'dev'; allowed are train",
        ),
        (lambda d: (d / "x.npz", (d / "x.npz").write_text("no"))[0], r"not an \.npz file"),
        (lambda d: (d / "x.npz", np.savez(d / "x.npz", images=np.zeros((2, 2, 2))))[0], "allowed is uint8"),
        (lambda d: (d / "x.npz", np.savez(d / "x.npz", x=np.zeros(2)))[0], "needed are `images`"),
        (lambda d: f"cifar10:{d}", "needed there are cifar-10-batches-py"),
        (lambda d: f"torchvision:Nothing:{d}", "allowed are CIFAR10"),
        (lambda d: "torchvision:MNIST", "write torchvision:NAME:DIR"),
        (lambda d: 7, "a int is not a data set"),
        (lambda d: [], "holds no images"),
        (lambda d: [np.zeros((2, 2, 3))], "gives no images: item 0: ndarray float64"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as error:
        open_source(make(tmp_path))
    assert "\n" not in str(error.value)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'dev'; allowed are train, test, all, pretrain"):
        open_source("sample", "dev")


@pytest.mark.parametrize(
    ("files", "spec", "reason"),
    [
        (["train/cat/1", "train/dog/2"], "", r"it has train/ but no test/ or val/; add one, or name .*train"),
        (["Val/cat/1", "Val/dog/2"], "", r"it has Val/ but no train/; add one, or name .*Val"),
        (["a/1", "a/2"], "", "it has only one class, a; at least two are needed"),
        (["a/1", "b/2", "loose"], "", r"loose\.png is in no sub-folder of a class"),
        (["train/a/1", "test/a/2"], "", "it has only one class, a; at least two are needed"),
        (["train/a/1", "train/b/1", "test/2"], "", r"test/2.*\.png is in no sub-folder of a class"),
        (["1"], "table.csv", "its columns are path, species; that of the classes must be called label"),
        (["1"], "list.txt", "a list of paths has none; a table"),
    ],
)
def test_why_there_are_no_labels(tmp_path, files, spec, reason):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text("path,species\n1.png,cat")
    (tmp_path / "list.txt").write_text("1.png")
    assert open_source(tmp_path / spec, "all").labels is None
    with pytest.raises(ValueError, match=rf"no labels, which measuring needs: {reason}"):
        labelled(copies(tmp_path, spec))


def copies(folder, spec):
    """As `spec`, but with enough images under its first name that 20 % of them can be held out."""
    first = sorted(folder.rglob("*.png"))[0]
    for k in range(12):
        shutil.copy(first, first.with_name(f"{first.stem}-{k}.png"))
    if spec:
        lines = (folder / spec).read_text().splitlines()
        more = [lines[-1].replace("1.png", f"1-{k}.png") for k in range(12)]
        (folder / spec).write_text("\n".join([*lines, *more]))
    return folder / spec


def test_why_items_and_named_sets_have_no_labels():
    assert why_unlabelled([1, 2]) == "its items are no pairs (image, label)"
    assert why_unlabelled("torchvision:X:dir") == "it comes without"
