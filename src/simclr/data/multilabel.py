"""Multi-label annotations: a label such as `car|person` names every class in the image, and `|` none."""

import numpy as np
from jaxtyping import Bool, Int64

from simclr.data.labels import SEPARATOR, sort_classes
from simclr.data.source import Source


def is_multilabel(source: Source) -> bool:
    """Return whether any label of a labelled source is a list of classes."""
    return any(SEPARATOR in name for name in source.classes)


def class_names(source: Source) -> list[str]:
    """Return the single classes of a labelled source."""
    if not is_multilabel(source):
        return source.classes
    return sort_classes({part for name in source.classes for part in name.split(SEPARATOR) if part})


def present_classes(source: Source) -> set[int]:
    """Return the `class_names` that occur in a labelled source."""
    labelled = np.flatnonzero(source.labels >= 0)
    values = targets(source.select(labelled, source.split))
    return set((values if values.ndim == 1 else values.any(0).nonzero()[0]).tolist())


def targets(source: Source) -> Int64[np.ndarray, " n"] | Bool[np.ndarray, "n c"]:
    """Return the class of each image (N,); of a multi-label source, the presence of each of `class_names` (N, C)."""
    return source.labels if not is_multilabel(source) else _presence(source)[source.labels]


def rarest_class(source: Source) -> Int64[np.ndarray, " n"]:
    """Return the class of each image, -1 for none; of a multi-label source, the rarest class in each image."""
    if not is_multilabel(source):
        return source.labels
    present = _presence(source)
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(present)) @ present
    # ties go to the first class; a label without any class is a class of its own, the last
    ranked = np.where(present, counts, np.iinfo(np.int64).max)
    rarest = np.where(present.any(1), ranked.argmin(1), present.shape[1])
    return np.where(source.labels >= 0, rarest[source.labels], -1)


def _presence(source: Source) -> Bool[np.ndarray, "l c"]:
    """Return which of `class_names` each of the labels `source.classes` contains."""
    column = {name: k for k, name in enumerate(class_names(source))}
    table = np.zeros((len(source.classes), len(column)), bool)
    for row, name in zip(table, source.classes, strict=True):
        row[[column[part] for part in name.split(SEPARATOR) if part]] = True
    return table
