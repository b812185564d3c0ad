"""Image lists, CSV tables and array files."""

import csv
import os
from pathlib import Path

import numpy as np

from simclr.data.labels import Annotation, encode_labels
from simclr.data.multilabel import joined
from simclr.data.paths import Paths
from simclr.data.source import Arrays, Files, Source
from simclr.data.splits import Part, assemble, select_part


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
