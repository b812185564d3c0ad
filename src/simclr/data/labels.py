"""Labels as they are written in files and objects, and the classes that they mean.

A missing label is None, an empty text, a negative number or a number that is not a number. Names of classes are
compared in the Unicode form NFC and without surrounding blanks.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from simclr.errors import DataError

SEPARATOR = "|"  # of the classes of one image
Annotation = tuple[Int64[np.ndarray, " n"] | None, list[str] | None]
_NUMBER = re.compile(r"\d+(\.\d*)?", re.ASCII)
_NEGATIVE = re.compile(r"-\d+(\.\d*)?", re.ASCII)


def has_label(item: Any) -> bool:
    """Return whether an item of a data set has a place for a label."""
    return "label" in item if isinstance(item, dict) else isinstance(item, tuple | list) and len(item) > 1


def label_of(item: Any) -> Any:
    """Return the label in an item of a data set, or None."""
    if isinstance(item, dict):
        return item.get("label")
    return item[1] if has_label(item) else None


def annotation_of(items: Any) -> Annotation:
    """Return labels and classes from the attributes `targets` or `labels`, and `classes`, of a data set."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(items, attribute, None)
        if not hasattr(values, "__len__") or len(values) != len(items):
            continue
        values = _join_columns(values, f"{type(items).__name__}.{attribute}")
        names = getattr(items, "classes", None)
        if isinstance(names, list) and values.dtype.kind in "iu" and values.max(initial=-1) < len(names):
            return np.maximum(values.astype(np.int64), -1), [class_name(name) for name in names]
        return encode_labels(values)
    return None, None


def join_columns(labels: Shaped[np.ndarray, "n ..."], where: str) -> Shaped[np.ndarray, " n"]:
    """Return labels (N,) unchanged, and multi-label columns (N, C) of 0 and 1 as texts such as `0|4`."""
    if labels.ndim < 2 or labels.shape[1:] == (1,):
        return labels.reshape(-1)
    if labels.ndim > 2 or labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise DataError(where, f"labels are {labels.dtype} {labels.shape}", "Give (N,), or (N, C) of 0 and 1")
    return np.array([_join(row) for row in labels])


def _join_columns(values: Any, where: str) -> Shaped[np.ndarray, " n"]:
    try:
        return join_columns(np.asarray(values), where)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        return np.array([None, *values], dtype=object)[1:]  # rows of different lengths


def _join(row: np.ndarray) -> str:
    text = SEPARATOR.join(map(str, np.flatnonzero(row)))
    return text if SEPARATOR in text else text + SEPARATOR


def encode_labels(values: Iterable[Any]) -> Annotation:
    """Return (indices into the classes, -1 for a missing label; the classes), or (None, None) without any label."""
    inverse: Any = slice(None)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufSU":
        values, inverse = np.unique(values, return_inverse=True)  # few classes, many images
        values = values.tolist()
    texts = [label_text(value) for value in values]
    names = set(texts) - {""}
    if not names:
        return None, None
    classes = sort_classes(names)
    index = {text: k for k, text in enumerate(classes)}
    return np.array([index.get(text, -1) for text in texts], np.int64)[inverse], classes


def label_text(value: Any) -> str:
    """Return a label as text, empty for a missing one."""
    text = _text(value)
    return "" if _NEGATIVE.fullmatch(text) else text


def class_name(name: Any) -> str:
    """Return the name of a class in its one form; of a multi-label text, with the classes in order."""
    text = unicodedata.normalize("NFC", str(name)).strip()
    if SEPARATOR not in text:
        return text
    parts = sort_classes({part.strip() for part in text.split(SEPARATOR)} - {""})
    return SEPARATOR.join(parts) if len(parts) > 1 else "".join(parts) + SEPARATOR


def _text(value: Any) -> str:
    """Return a label as text, empty for a missing one; columns of 0 and 1, and lists of names, as `a|b`."""
    if hasattr(value, "tolist"):  # an array or a tensor
        value = value.tolist()
    if isinstance(value, list | tuple):
        if value and all(part in (0, 1) for part in value):
            return _join(np.asarray(value))
        return class_name(SEPARATOR.join(map(_text, value)) + SEPARATOR)
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return class_name(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)


def sort_classes(names: Collection[str]) -> list[str]:
    """Return names sorted as numbers if all are numbers, else as text; equal numbers are sorted as texts."""
    if all(_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)
