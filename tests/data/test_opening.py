"""A data set that cannot be opened is told in one line, with what is allowed."""

import numpy as np
import pytest

from simclr.data import open_source


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
