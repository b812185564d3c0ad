"""Image lists, tables and array files."""

import codecs
import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from simclr.data.arrays import read_array, read_arrays
from simclr.data.labels import SEPARATOR, Annotation, encode_labels, join_columns, label_text
from simclr.data.paths import EXTENSIONS, MAX_TEXT_BYTES, Paths, read_lines
from simclr.data.source import Arrays, Files, Source
from simclr.data.splits import SPLIT_NAMES, Part, assemble, select_split
from simclr.errors import DataError
from simclr.runs.files import unguard_cell
from simclr.runs.reading import read_bytes

COLUMNS = {"path": ("path", "file_name"), "label": ("label", "labels"), "split": ("split",), "group": ("group",)}
"""names of the columns of a table, in any case, unless others are given"""
DELIMITERS = ",;\t"
HEADER = "The first line must name the columns, such as path,label"


def open_list(path: Path, split: str) -> Source:
    """Open the images whose paths are the lines of a text file."""
    return select_split(_named_files(path, read_lines(path)), None, split)


def open_table(path: Path, split: str, names: Mapping[str, str]) -> Source:
    """Open the images of a table; `names` are those of its columns path, label, split and group that are not usual."""
    columns = read_columns(path, names)
    annotation = encode_labels(columns["label"]) if "label" in columns else (None, None)
    groups = number_groups(columns["group"]) if "group" in columns else None
    source = _named_files(path, [os.fsencode(name) for name in columns["path"]], annotation, groups)
    used, is_test = np.ones(len(source), bool), None
    if "split" in columns:
        splits = np.array([SPLIT_NAMES.get(text.casefold(), "") for text in columns["split"]])
        for row in np.flatnonzero(splits == "")[:1]:
            problem = f"the split of {columns['path'][row]!r} is {columns['split'][row]!r}"
            raise DataError(path, problem, f"Use one of {', '.join(SPLIT_NAMES)}")
        test = "test" if "test" in splits else "val"
        used = np.isin(splits, ("train", test))
        source = source if used.all() else source.select(np.flatnonzero(used), "all")
        is_test = splits[used] == test
        _require_apart(path, source, is_test)
    if "label" in columns:
        _require_one_label(path, *([columns[name][i] for i in np.flatnonzero(used)] for name in ("path", "label")))
    return select_split(source, is_test, split)


def _require_apart(table: Path, source: Source, is_test: Bool[np.ndarray, " n"]) -> None:
    """Raise DataError if an image, or a group, is in both splits of a table: tests would be of known images."""
    names = np.array([os.path.normpath(name) for name in source.paths.encoded()], dtype=object)
    for what, keys in (("image", names), ("group", source.groups)):
        if keys is not None and (shared := set(keys[is_test]) & set(keys[~is_test])):
            first = next(row for row, key in enumerate(keys) if key in shared)
            problem = (
                f"number of {what}s in both the training and the test split: {len(shared)}; see {source.path(first)!r}"
            )
            raise DataError(table, problem, f"Give each {what} one split", names=(what,))


def _require_one_label(table: Path, names: Iterable[str], labels: Iterable[Any]) -> None:
    """Raise DataError if rows of a table give one image two classes. Of a multi-label table they may: each row names
    some of the classes."""
    texts = list(map(label_text, labels))
    if any(SEPARATOR in text for text in texts):
        return
    known: dict[str, str] = {}
    for name, text in zip(names, texts, strict=True):
        if text and (other := known.setdefault(os.path.normpath(name), text)) != text:
            problem = f"{name!r} has two labels, {other!r} and {text!r}"
            raise DataError(table, problem, "Give each image one label", names=(other, text))


def read_columns(path: Path, names: Mapping[str, str] | None = None) -> dict[str, list[Any]]:
    """Return the columns path, label, split and group of a table or of a file of JSON lines, if they are there.

    The delimiter is a comma, a semicolon or a tab, whichever the header has most of.
    """
    rows, lines, header = _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    columns = {}
    for column, usual in COLUMNS.items():
        wanted = (names[column],) if names and column in names else usual
        position = next((header.index(key) for key in map(_key, wanted) if key in header), None)
        if position is not None:
            cells = [row[position] if position < len(row) else None for row in rows]
            columns[column] = [unguard_cell(c) if column == "path" and isinstance(c, str) else c for c in cells]
        elif column == "path" and wanted == usual and any(map(_is_image_name, header)):
            raise DataError(path, "the first line names an image, not columns", HEADER)
        elif column == "path" or (names and column in names):
            problem = f"there is no column {wanted[0]!r}; the columns are {', '.join(header) or 'none'}"
            raise DataError(path, problem, f"Name the one to use: {path.name}?{column}=COLUMN")
    for column, cells in columns.items():
        for line, cell in zip(lines, cells, strict=True):
            if column in ("path", "split") and not cell:
                raise DataError(path, f"line {line} has no {column}")
            if column in ("path", "split") and not isinstance(cell, str):
                raise DataError(path, f"line {line}: the {column} is {cell!r}, not text")
            if isinstance(cell, str) and not _can_encode(cell, "surrogateescape" if column == "path" else "strict"):
                raise DataError(path, f"line {line}: the {column} is not UTF-8 text", "Save the table as UTF-8")
    return columns


def _csv_rows(path: Path) -> tuple[list[list[str]], list[int], list[str]]:
    """Return the rows of a table, the numbers of their lines, and the header."""
    text = read_text(path)
    first = text.lstrip("\r\n").partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count))
    rows, lines = [], []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(path, f"line {reader.line_num} cannot be parsed ({error})") from None
    if not rows:
        raise DataError(path, "the file is empty", HEADER)
    return rows[1:], lines[1:], [_key(name) for name in rows[0]]


def _json_rows(path: Path) -> tuple[list[list[Any]], list[int], list[str]]:
    rows, lines = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(path, f"line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(path, f"line {number} is not a JSON object")
        rows.append({_key(name): value for name, value in row.items()})
        lines.append(number)
    if not rows:
        raise DataError(path, "the file is empty", 'Each line must be an object such as {"path": "a.jpg"}')
    header = list(dict.fromkeys(name for row in rows for name in row))
    return [[row.get(name) for name in header] for row in rows], lines, header


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without byte order mark; other bytes are kept as surrogates."""
    content = read_bytes(path, MAX_TEXT_BYTES).removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(path, "it is UTF-16 text", "Save it as UTF-8")
    return content.decode("utf-8", "surrogateescape")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _can_encode(text: str, errors: str) -> bool:
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        return False
    return True


def _is_image_name(key: str) -> bool:
    stem, _, suffix = key.rpartition(".")
    return bool(stem) and suffix.encode(errors="replace") in EXTENSIONS


def number_groups(names: Iterable[Any]) -> Int64[np.ndarray, " n"]:
    """Return a number for each name; an empty name is a group of its own."""
    keys = [str(name) if name not in (None, "") else f"\0{i}" for i, name in enumerate(names)]
    return np.unique(np.array(keys, dtype=object), return_inverse=True)[1].astype(np.int64)


def read_metadata(files: Iterable[tuple[Path, str]], names: list[bytes]) -> tuple[Annotation, Any]:
    """Return labels and groups of images from the `metadata.csv` or `metadata.jsonl` of Hugging Face's ImageFolder.

    `files` are these files, with the prefix of their images' names; `names` are those of all images. Images that are in
    no file have no label.
    """
    labels: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for file, prefix in files:
        columns = read_columns(file)
        paths = [os.path.normpath(prefix + name) for name in columns["path"]]
        if "label" in columns:
            _require_one_label(file, paths, columns["label"])
            labels |= dict(zip(paths, columns["label"], strict=True))
        groups |= dict(zip(paths, columns.get("group", ()), strict=False))
        if not set(paths) & (known := {os.fsdecode(name) for name in names}):
            problem = f"it names none of the {len(known)} images, but files such as {columns['path'][:1]}"
            raise DataError(file, problem, "Paths must be relative to this file")
    texts = [os.fsdecode(name) for name in names]
    values = [labels.get(text) for text in texts]
    values = [SEPARATOR.join(map(str, v)) + SEPARATOR if isinstance(v, list) else v for v in values]
    return encode_labels(values), number_groups(groups.get(text) for text in texts) if groups else None


def _named_files(
    table: Path, names: list[bytes], annotation: Annotation = (None, None), groups: np.ndarray | None = None
) -> Files:
    if not names:
        raise DataError(table, "it names no images")
    root = table.parent
    if not any((root / os.fsdecode(name)).exists() for name in names[:100]):
        raise DataError(
            table, f"{os.fsdecode(names[0])!r} does not exist", "Paths must be absolute or relative to this file"
        )
    return Files(name=table.stem, root=root, paths=Paths.of(names), annotation=annotation, groups=groups)


def open_arrays(path: Path, split: str) -> Source:
    """Open the images of an .npz file, or the array of images of an .npy file."""
    arrays = {"images": read_array(path)} if path.suffix.lower() == ".npy" else read_arrays(path)
    if "images" in arrays:
        labels = arrays.get("labels")
        annotation = (None, None) if labels is None else encode_labels(join_columns(labels, str(path)))
        pixels = _pixels(path, "images", arrays["images"], annotation[0])
        groups = number_groups(arrays["groups"].tolist()) if "groups" in arrays else None
        paths = Paths.numbered("", len(pixels))
        source = Arrays(name=path.stem, paths=paths, pixels=pixels, annotation=annotation, groups=groups)
        return select_split(source, None, split)
    test = next((name for name in ("test", "val", "valid", "validation") if f"{name}_images" in arrays), None)
    if "train_images" not in arrays or test is None:
        problem = f"it contains {', '.join(arrays) or 'nothing'}"
        raise DataError(path, problem, "Save `images`, or `train_images` and `test_images`")
    labels = [join_columns(arrays[f"{s}_labels"], str(path)) for s in ("train", test) if f"{s}_labels" in arrays]
    values, classes = encode_labels(np.concatenate(labels)) if len(labels) == 2 else (None, None)

    def load(part: str) -> Part:
        key = f"{test if part == 'test' else part}_images"
        halves = np.split(values, [len(labels[0])]) if values is not None else (None, None)
        return _pixels(path, key, arrays[key], halves[part == "test"]), halves[part == "test"]

    return assemble(path.stem, split, load, classes)


def _pixels(path: Path, key: str, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    if images.dtype.kind not in "uif" or images.ndim not in (3, 4):
        problem = f"`{key}` is {images.dtype} {images.shape}"
        raise DataError(path, problem, "Images must be numbers (N, H, W, C) or (N, H, W)")
    if not images.size:
        raise DataError(path, f"`{key}` is empty")
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[2] == images.shape[3] > 4:
        problem = f"`{key}` {images.shape} looks like (N, C, H, W), and must be (N, H, W, C)"
        raise DataError(path, problem, f"Save {key}.transpose(0, 2, 3, 1)")
    if labels is not None and len(labels) != len(images):
        raise DataError(path, f"there are {len(images)} `{key}` but {len(labels)} labels")
    return images.reshape(*images.shape[:3], -1)
