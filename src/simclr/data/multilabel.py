"""Images that show several classes: a label such as `car|person` names them all, and `|` none."""

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from simclr.data.labels import sort_classes
from simclr.data.source import Source

SEPARATOR = "|"


def joined(labels: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, " n"]:
    """Labels (N,) as they are; columns (N, C) of 0 and 1 as the numbers of those that are 1, such as `0|4`."""
    if labels.ndim < 2 or labels.shape[1:] == (1,):
        return labels.reshape(-1)
    if labels.ndim > 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; allowed are (N,), or (N, C) of 0 and 1")
    rows = (SEPARATOR.join(map(str, np.flatnonzero(row))) for row in labels)
    return np.array([row if SEPARATOR in row else row + SEPARATOR for row in rows])


def has_several(source: Source) -> bool:
    """Whether any class of a labelled source is a list of classes."""
    return any(SEPARATOR in name for name in source.classes)


def class_names(source: Source) -> list[str]:
    """The single classes of a labelled source."""
    if not has_several(source):
        return source.classes
    return sort_classes({part for name in source.classes for part in name.split(SEPARATOR) if part})


def occurring(source: Source) -> set[int]:
    """Which of `class_names` the images of a labelled source show."""
    known = np.flatnonzero(source.labels >= 0)
    found = truth(source.select(known, source.split))
    return set((found if found.ndim == 1 else found.any(0).nonzero()[0]).tolist())


def truth(source: Source) -> Int64[np.ndarray, " n"] | Bool[np.ndarray, "n c"]:
    """Class of each image (N,), or, where images show several, the presence of each of `class_names` (N, C)."""
    if not has_several(source):
        return source.labels
    column = {name: k for k, name in enumerate(class_names(source))}
    table = np.zeros((len(source.classes), len(column)), bool)
    for row, name in zip(table, source.classes, strict=True):
        row[[column[part] for part in name.split(SEPARATOR) if part]] = True
    return table[source.labels]
