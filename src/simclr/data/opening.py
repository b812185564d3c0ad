"""The one grammar of data sets: from what a user writes to a `Source`."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from .decoding import UnreadableImage
from .folders import open_folder, open_shards, without_classes
from .loading import attempt
from .named import cifar10, sample, torchvision_set
from .paths import Paths, find_images
from .several import joined
from .shards import shard_files
from .sources import Annotation, Arrays, Files, Objects, Source, encode_labels
from .splits import SPLITS, Part, assemble, reopen, select_part

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


def _list(path: Path, split: str) -> Source:
    names = [line for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    return select_part(_named_files(path, names, (None, None)), None, split)


def _table(path: Path, split: str) -> Source:
    columns = _columns(path, ("path",), ("label", "split"))
    annotation = encode_labels(columns["label"]) if "label" in columns else (None, None)
    is_test = None
    if "split" in columns:
        parts = np.char.lower(columns["split"])
        for row in np.flatnonzero(~np.isin(parts, ("train", "test", "val")))[:1]:
            raise ValueError(
                f"{path}: split of {columns['path'][row]!r} is {str(parts[row])!r}; allowed are train, test, val"
            )
        is_test = parts == ("test" if "test" in parts else "val")
        used = is_test | (parts == "train")
    source = _named_files(path, [os.fsencode(name) for name in columns["path"]], annotation)
    if is_test is not None and not used.all():
        source, is_test = source.select(np.flatnonzero(used), "all"), is_test[used]
    return select_part(source, is_test, split)


def _columns(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, list[str]]:
    """The columns of a table by name; a ValueError says which line is wrong."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.DictReader(file)
        header = table.fieldnames or []
        if missing := [name for name in required if name not in header]:
            raise ValueError(f"{path}: no column {missing[0]!r} in the header {header}; optional are {list(optional)}")
        columns: dict[str, list[str]] = {name: [] for name in (*required, *optional) if name in header}
        for row in table:
            for name, cells in columns.items():
                if row[name] is None or (name in required and not row[name].strip()):
                    raise ValueError(f"{path}, line {table.line_num}: no {name}")
                cells.append(row[name])
    return columns


def _named_files(table: Path, names: list[bytes], annotation: Annotation) -> Files:
    if not names:
        raise ValueError(f"{table}: names no images")
    root = table.parent
    if not any((root / os.fsdecode(name)).exists() for name in names[:100]):
        raise ValueError(
            f"{table}: {os.fsdecode(names[0])!r} does not exist (paths are relative to the table's folder)"
        )
    return Files(name=table.stem, root=root, paths=Paths.of(names), annotation=annotation)


def _npz(path: Path, split: str) -> Source:
    try:
        arrays = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not an .npz file ({error})") from None
    with arrays:
        if "images" in arrays:
            annotation = encode_labels(joined(arrays["labels"])) if "labels" in arrays else (None, None)
            pixels = _pixels(path, "images", arrays["images"], annotation)
            source = Arrays(name=path.stem, paths=Paths.numbered("", len(pixels)), pixels=pixels, annotation=annotation)
            return select_part(source, None, split)
        test = "test" if "test_images" in arrays else "val"
        if "train_images" not in arrays or f"{test}_images" not in arrays:
            raise ValueError(f"{path}: holds {list(arrays)}; needed are `images`, or `train_images` and `test_images`")
        labels = [joined(arrays[f"{part}_labels"]) for part in ("train", test) if f"{part}_labels" in arrays]
        known, classes = encode_labels(np.concatenate(labels)) if len(labels) == 2 else (None, None)

        def load(part: str) -> Part:
            key = f"{test if part == 'test' else part}_images"
            halves = np.split(known, [len(labels[0])]) if known is not None else (None, None)
            annotation = (halves[part == "test"], classes)
            return _pixels(path, key, arrays[key], annotation), annotation[0]

        return assemble(path.stem, split, load, classes)


def _pixels(path: Path, key: str, images: np.ndarray, annotation: Annotation) -> np.ndarray:
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[3:] not in ((), (1,), (3,))
        or not images.size
    ):
        raise ValueError(f"{path}: {key} is {images.dtype} {images.shape}; allowed is uint8 (N, H, W, 3) or (N, H, W)")
    if annotation[0] is not None and len(annotation[0]) != len(images):
        raise ValueError(f"{path}: {len(images)} {key} but {len(annotation[0])} labels")
    return images if images.shape[3:] == (3,) else np.repeat(images.reshape(*images.shape[:3], 1), 3, axis=3)


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
