"""Confusion matrix, and the figures of each class."""

import numpy as np
from jaxtyping import Float64, Int64


def confusion_matrix(
    labels: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"], classes: int
) -> Int64[np.ndarray, "c c"]:
    """Return the number of images of each class (row) for which each class is predicted (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def recall_and_precision(
    matrix: Int64[np.ndarray, "c c"],
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Return the fraction of the images of each class that are predicted as it, and of those predicted as it that are
    of it; nan where there are none."""
    hits = matrix.diagonal().astype(np.float64)
    with np.errstate(invalid="ignore"):
        return hits / matrix.sum(1), hits / matrix.sum(0)


def frequent_confusions(matrix: Int64[np.ndarray, "c c"], most: int) -> list[tuple[int, int, int]]:
    """Return up to `most` pairs (class, predicted class, images), most frequent first."""
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i) // len(matrix), int(i) % len(matrix)) for i in order]
    return [(a, b, int(wrong[a, b])) for a, b in pairs if wrong[a, b]]
