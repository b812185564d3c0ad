"""Data specifications: from a path or a name to a `Source`."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from simclr.data.datasets import cifar10, sample, torchvision_set
from simclr.data.folders import explain_missing_classes, open_folder, open_shards
from simclr.data.in_memory import first_errors
from simclr.data.indexed import open_indexed
from simclr.data.multilabel import is_multilabel
from simclr.data.paths import Paths, list_images
from simclr.data.remote import is_url
from simclr.data.shards import shard_files
from simclr.data.source import ItemLabels, Objects, Source
from simclr.data.splits import SPLITS, reopen, select_split
from simclr.data.tables import COLUMNS, open_arrays, open_list, open_table, read_columns
from simclr.errors import DataError, SettingError
from simclr.runs.files import printable


def open_for_pretraining(data: Any) -> Source:
    """Open the images to pretrain on: all images of an unlabelled source, else its training split, so that the test
    split remains unseen."""
    source = open_source(data, "pretrain")
    if source.labels is not None and not source.has_own_split:
        source = open_source(data, "train")
    if len(source) < 2:
        raise DataError(source.name, f"there are {len(source)} images to learn from; at least 2 are needed")
    return source


def find_test_images(data: Any) -> Bool[ndarray, " n"]:
    """Return which of all images of `data` are in its test split."""
    whole, train, test = (open_source(data, split) for split in ("all", "train", "test"))
    if whole.starts is not None:  # of tar files with an index they are the first
        return np.arange(len(whole)) < len(test)
    names, test_names = list(whole.paths.encoded()), set(test.paths.encoded())
    if test_names.isdisjoint(train.paths.encoded()) or len(set(names)) < len(names):
        return np.array([name in test_names for name in names])
    return np.arange(len(names)) >= len(train)  # both splits number their images from 0, one after the other


def labels_for(what: str, source: Source, data: Any) -> Int64[ndarray, " n"]:
    """Return the class of each image of a source opened from `data`, -1 for none, which `what` learns from."""
    if source.labels is None:
        raise DataError(source.name, f"{what} needs labels, and there are none: {why_unlabelled(data)}")
    if is_multilabel(source):
        raise DataError(source.name, f"{what} needs one class per image, and the labels are multi-label")
    return source.labels


GRAMMAR = (
    "a folder of images, a list of paths FILE.txt, a table FILE.csv, arrays FILE.npz or FILE.npy, tar files FILE.tar "
    "or NAME-{000..099}.tar, the URL of tar files with an index, cifar10:DIR, torchvision:NAME:DIR, sample, or an "
    "object with __len__ and __getitem__"
)


def open_source(spec: Any, split: str = "train") -> Source:
    """Open a split of the images that `spec` names; `docs/data.md` has examples.

    ====================  ======================================================================================
    `spec`                images, labels, split
    ====================  ======================================================================================
    a folder              all image files below it; each first-level sub-folder is a class if every image is in
                          one and there are at least two. If there are sub-folders `train` and `test` or `val`
                          (or other usual names, see SPLIT_NAMES), these are the splits and contain the classes.
                          Labels in a `metadata.csv` or `metadata.jsonl` as of Hugging Face have precedence
    ``FILE.txt``          one path a line, relative to the list's folder; in the order of the lines
    ``FILE.csv``          a header and the columns `path`, and optionally `label`, `split` and `group`, separated by
                          commas, semicolons or tabs; in the order of the rows
    ``FILE.npz``          `images` uint8 (N, H, W, 3) or (N, H, W) and optionally `labels` and `groups`, or the pairs
                          `train_images`, `train_labels`, `test_images` (or `val_images`), `test_labels`. Arrays of
                          other types and (N, H, W, C) are for encoders of C channels; ``FILE.npy`` is one array
    ``FILE.tar``          images in a tar file, with folders as above or classes in .cls members as in WebDataset;
                          ``NAME-{00..99}.tar`` is a hundred of them, a folder of tar files all in it
    ``s3://BUCKET/FOLDER`` tar files with an index, which `simclr pack` writes, at any URL that fsspec reads
    ``cifar10:DIR``       CIFAR-10 in any of its usual formats
    ``torchvision:X:DIR`` the torchvision data set of class X, which is downloaded to DIR if it is not there
    ``sample``            the subset of CIFAR-10 that comes with the package
    an object             see `simclr.data.Objects`
    a `Source`            itself, or a split of it
    ====================  ======================================================================================

    Options follow a question mark: ``FILE.csv?path=COLUMN&label=COLUMN&split=COLUMN&group=COLUMN`` names columns,
    ``FOLDER?label=LEVEL&group=LEVEL`` the levels of the folders that are classes (0: no labels) and groups.

    `split` is "train" or "test": those of the source itself, or else a random 80 % and 20 %, see `holdout_mask`;
    "all": every image; "pretrain": the images for training without labels, which is the training split of a source
    that has a split of its own, else every image.

    Raises DataError for anything that cannot be opened.
    """
    if split not in SPLITS:
        raise SettingError("split", f"one of {', '.join(SPLITS)}", split)
    if isinstance(spec, Source):
        return reopen(spec, split)
    if not isinstance(spec, str | os.PathLike):
        return _open_object(spec, split)
    text = os.fspath(spec)
    if not text:
        raise DataError("data", "the text is empty", f"It can be {GRAMMAR}")
    if is_url(text):
        return open_indexed(text, split)
    kind, _, rest = text.partition(":")
    if text == "sample":
        return sample(split)
    if kind == "cifar10" and rest:
        return cifar10(Path(rest).expanduser(), split)
    if kind == "torchvision":
        name, _, folder = rest.partition(":")
        if not name or not folder:
            raise DataError(text, "it is incomplete", "Write torchvision:NAME:DIR, as in torchvision:STL10:./data")
        return torchvision_set(name, Path(folder).expanduser(), split)
    return _open_path(text, split)


def _open_path(text: str, split: str) -> Source:
    text, options = split_options(text)
    path = Path(text).expanduser()
    kind = path.suffix.lower()
    if path.is_dir():
        if "path" in options or "split" in options:
            raise DataError(text, "path and split are options of a table", "A folder has label and group")
        source = open_folder(path, split, {key: _level(text, key, value) for key, value in options.items()})
        _warn_skipped(path, tuple(source.left_out.skipped.items()))
        return source
    if kind == ".tar":
        return open_shards(shard_files(text), path.stem, split)
    if not path.exists():
        raise DataError(text, "it does not exist", f"Data can be {GRAMMAR}")
    if kind in (".csv", ".tsv", ".jsonl"):
        return open_table(path, split, options)
    if kind not in (".txt", ".npz", ".npy"):
        raise DataError(text, "it is not a data set", f"Data can be {GRAMMAR}")
    return open_list(path, split) if kind == ".txt" else open_arrays(path, split)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Return a path and the options after its last question mark, as in `table.csv?path=file&label=species`."""
    base, mark, query = text.rpartition("?")
    if not mark or Path(text).expanduser().exists():
        return text, {}
    options = dict(part.partition("=")[::2] for part in query.split("&"))
    if unknown := options.keys() - COLUMNS.keys():
        problem = f"the option {min(unknown)!r} is unknown"
        raise DataError(text, problem, f"Options after the question mark are {', '.join(COLUMNS)}")
    return base, options


def _level(text: str, key: str, value: str) -> int:
    if not value.isdecimal() or (key == "group" and value == "0"):
        raise DataError(text, f"{key} is {value!r}", "For a folder it is the level of sub-folders, such as 1")
    return int(value)


@cache  # each warning once, although a command opens several splits
def _warn_skipped(root: Path, skipped: tuple[tuple[str, str], ...]) -> None:
    for name, reason in skipped[:10]:
        print(f"{printable(root)}: {printable(name)} is left out: {reason}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"{printable(root)}: {len(skipped) - 10} more are left out; simclr scan lists them", file=sys.stderr)


def why_unlabelled(spec: Any) -> str:
    """Return why the source that `spec` names has no labels, and what to do."""
    if not isinstance(spec, str | os.PathLike):
        return "its items are not pairs (image, label)"
    if is_url(spec):
        return "its index has none"
    text, options = split_options(os.fspath(spec))
    path = Path(text).expanduser()
    if path.is_dir() and list_images(path).names:
        return "label=0 was given" if options.get("label") == "0" else explain_missing_classes(path)
    match ".tar" if path.is_dir() else path.suffix.lower():
        case ".txt":
            return "a list of paths has none; use a table FILE.csv with the columns path and label"
        case ".csv" | ".tsv" | ".jsonl":
            if "label" in read_columns(path, options):
                return "the column label is empty"
            return f"there is no column label; name the one of the classes, as in {path.name}?label=COLUMN"
        case ".tar":
            return "there are no classes beside the images (KEY.cls) and no two folders of classes"
        case ".npy":
            return "an array has none; use FILE.npz with `images` and `labels`"
        case ".npz":
            return "it contains no `labels`, or not both `train_labels` and `test_labels`"
    return "the data set has none"


def _open_object(items: Any, split: str) -> Source:
    name = type(items).__name__
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise DataError("data", f"a {name} is not a data set", f"Data can be {GRAMMAR}")
    n = len(items)
    if not n:
        raise DataError(name, "it contains no images")
    source = Objects(
        name=name, paths=Paths.numbered("", n), items=items, rows=np.arange(n), item_labels=ItemLabels(items)
    )
    errors = first_errors(source)
    if errors and first_errors(source, stored=True):
        raise DataError(name, f"its items are not images: item {errors[0]}")
    return select_split(source, None, split)
