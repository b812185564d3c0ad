"""Labels and class names."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

Annotation = tuple[Int64[np.ndarray, " n"] | None, list[str] | None]


def label_of(item: Any) -> Any:
    """The label in an item of a data set, or None."""
    if isinstance(item, dict):
        return item.get("label")
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None


def annotation_of(items: Any) -> Annotation:
    """Labels and classes from the attributes `targets` or `labels`, and `classes`, of a data set."""
    for attribute in ("targets", "labels", "_labels"):
        given = getattr(items, attribute, None)
        if given is None or len(given) != len(items):
            continue
        given = np.asarray(given).reshape(-1)
        names = getattr(items, "classes", None)
        if isinstance(names, list) and given.dtype.kind in "iu" and given.max() < len(names):
            return np.maximum(given.astype(np.int64), -1), [str(name) for name in names]
        return encode_labels(given)
    return None, None


def encode_labels(values: Sequence[str] | Shaped[np.ndarray, "..."]) -> Annotation:
    """Labels as they were written -> (indices into the classes, the classes), or (None, None) if there are none.

    An empty text or a negative number means that an image has no label, and gives -1.
    """
    names, inverse = np.unique(np.asarray(values).reshape(-1), return_inverse=True)
    texts = [str(name).strip() for name in names]
    known = sort_classes({text for text in texts if text and not _is_negative(text)})
    if not known:
        return None, None
    index = {text: k for k, text in enumerate(known)}
    return np.array([index.get(text, -1) for text in texts], np.int64)[inverse], known


def sort_classes(names: Collection[str]) -> list[str]:
    """Sorted as numbers if all are whole numbers, else as text."""
    return sorted(names, key=int if all(name.isdecimal() for name in names) else None)


def _is_negative(text: str) -> bool:
    return text.startswith("-") and text[1:].isdecimal()
