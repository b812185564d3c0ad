"""Data specifications: from a path or a name to a `Source`."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from simclr.data.datasets import cifar10, sample, torchvision_set
from simclr.data.folders import open_folder, open_shards, without_classes
from simclr.data.loading import attempt
from simclr.data.multilabel import has_several
from simclr.data.paths import Paths, find_images
from simclr.data.shards import shard_files
from simclr.data.source import Objects, Source
from simclr.data.splits import SPLITS, reopen, select_part
from simclr.data.tables import _list, _npz, _table
from simclr.errors import UnreadableImage


def unlabelled(data: Any) -> Source:
    """What may be pretrained on: every image of an unlabelled source, else its training part, so that the test part
    stays unseen."""
    source = open_source(data, "pretrain")
    if source.labels is not None and not source.has_own_split:
        source = open_source(data, "train")
    if len(source) < 2:
        raise ValueError(f"{source.name} has one image to learn from; at least 2 are needed")
    return source


def labels_for(what: str, source: Source, data: Any) -> Int64[ndarray, " n"]:
    """The class of each image of a source opened from `data`, -1 where there is none, for `what` learns from them."""
    if source.labels is None:
        raise ValueError(f"{what} needs labels, and {source.name} has none: {why_unlabelled(data)}")
    if has_several(source):
        raise ValueError(f"{what} needs one class an image, and images of {source.name} show several")
    return source.labels


GRAMMAR = (
    "a folder of images, a list of paths FILE.txt, a table FILE.csv, arrays FILE.npz, tar files FILE.tar or "
    "NAME-{000..099}.tar, cifar10:DIR, torchvision:NAME:DIR, sample, or an object with __len__ and __getitem__"
)


def open_source(spec: Any, split: str = "train") -> Source:
    """The images that `spec` names, as the part `split`; `docs/data.md` has examples.

    ====================  ======================================================================================
    `spec`                images, labels, split
    ====================  ======================================================================================
    a folder              all image files below it; each first-level sub-folder is a class if every image lies in
                          one and there are at least two. With a sub-folder `train` and one `test` or `val`:
                          those two are the split, and classes are looked for below them
    ``FILE.txt``          one path a line, relative to the list's folder; in the order of the lines
    ``FILE.csv``          a header and the columns `path`, and optionally `label` and `split` (train, test or
                          val); in the order of the rows
    ``FILE.npz``          `images` uint8 (N, H, W, 3) or (N, H, W) and optionally `labels`, or the pairs
                          `train_images`, `train_labels`, `test_images` (or `val_images`), `test_labels`
    ``FILE.tar``          images in a tar file, with folders as above or classes in .cls members, as WebDataset has
                          them; ``NAME-{00..99}.tar`` is a hundred of them, a folder of tar files all that are there
    ``cifar10:DIR``       CIFAR-10 in any of its usual forms
    ``torchvision:X:DIR`` the torchvision data set of class X, which downloads it to DIR if it is not there
    ``sample``            a part of CIFAR-10 that comes with the package
    an object             see `simclr.data.Objects`
    a `Source`            itself, or its hold-out split
    ====================  ======================================================================================

    `split` is "train" or "test": the parts the source itself has, or else 80 % and 20 % by a hash of each
    image's name; "all": every image; "pretrain": what may be learnt from without labels, which is the
    training part of a source with its own split, else every image.

    Raises ValueError, in one line, for anything that cannot be opened.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)}")
    if isinstance(spec, Source):
        return reopen(spec, split)
    if not isinstance(spec, str | os.PathLike):
        return _object(spec, split)
    text = os.fspath(spec)
    if not text:
        raise ValueError(f"data is an empty text; it can be {GRAMMAR}")
    kind, _, rest = text.partition(":")
    if text == "sample":
        return sample(split)
    if kind == "cifar10" and rest:
        return cifar10(Path(rest).expanduser(), split)
    if kind == "torchvision":
        name, _, folder = rest.partition(":")
        if not name or not folder:
            raise ValueError(f"{text!r}: write torchvision:NAME:DIR, as in torchvision:STL10:./data")
        return torchvision_set(name, Path(folder).expanduser(), split)
    path = Path(text).expanduser()
    if path.is_dir():
        return open_folder(path, split)
    if path.suffix.lower() == ".tar":
        return open_shards(shard_files(text), path.stem, split)
    if not path.exists():
        raise ValueError(f"{text!r} does not exist; data can be {GRAMMAR}")
    openers = {".txt": _list, ".csv": _table, ".npz": _npz}
    if path.suffix.lower() not in openers:
        raise ValueError(f"{text!r} is not a data set; data can be {GRAMMAR}")
    return openers[path.suffix.lower()](path, split)


def why_unlabelled(spec: Any) -> str:
    """What is missing where the source that `spec` names has no labels, in words."""
    if not isinstance(spec, str | os.PathLike):
        return "its items are no pairs (image, label)"
    path = Path(spec).expanduser()
    if path.is_dir() and find_images(path):
        return without_classes(path)
    match ".tar" if path.is_dir() else path.suffix.lower():
        case ".txt":
            return "a list of paths has none; a table FILE.csv has columns path and label"
        case ".csv":
            with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                header = next(csv.reader(file), [])
            if "label" in header:
                return "its column label is empty"
            return f"its columns are {', '.join(header)}; that of the classes must be called label"
        case ".tar":
            return "its images have no classes beside them (KEY.cls) and lie in no two folders"
        case ".npz":
            return "labels stand beside images, or train_labels and test_labels beside the images of both parts"
    return "it comes without"


def _object(items: Any, split: str) -> Source:
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise ValueError(f"a {type(items).__name__} is not a data set; data can be {GRAMMAR}")
    n = len(items)
    if not n:
        raise ValueError(f"the {type(items).__name__} holds no images")
    source = Objects(name=type(items).__name__, paths=Paths.numbered("", n), items=items, rows=np.arange(n))
    first = [attempt(source, i) for i in range(min(n, 3))]
    if all(isinstance(one, UnreadableImage) for one in first):
        raise ValueError(f"the {source.name} gives no images: item {first[0]}")
    return select_part(source, None, split)
