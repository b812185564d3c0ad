"""Figures of each class and the confusion matrix, as tables."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from simclr.evaluation.confusion import frequent_confusions, recall_and_precision

MATRIX = 30  # classes of a matrix that is shown; of more classes, the most frequent confusions
LISTED = 100  # classes of a table; of more, the worst


def class_table(matrix: Int64[np.ndarray, "c c"], names: list[str]) -> dict[str, Any]:
    """Return the table of classes, lowest accuracy first, as the templates take it."""
    recall, precision = recall_and_precision(matrix)

    def percent(value: float) -> str:
        return "" if np.isnan(value) else f"{100 * value:.1f} %"

    images = matrix.sum(1)
    order = [k for k in np.argsort(recall, kind="stable").tolist() if images[k]]
    rows = [[names[k], f"{images[k]:,}", percent(recall[k]), percent(precision[k])] for k in order[:LISTED]]
    note = f"The {LISTED} classes of lowest accuracy." if len(order) > LISTED else "Lowest accuracy first."
    columns = ["class", "images", "accuracy", "precision"]
    return {"title": "Accuracy by class", "columns": columns, "rows": rows, "note": note, "compact": True}


def confusion_table(matrix: Int64[np.ndarray, "c c"], names: list[str]) -> dict[str, Any]:
    """Return the confusion matrix, with the fraction of its row as the shade of each cell; of many classes, the most
    frequent confusions."""
    if len(names) > MATRIX:
        pairs = [[names[a], names[b], f"{n:,}"] for a, b, n in frequent_confusions(matrix, MATRIX)]
        columns = ["label", "predicted", "images"]
        title = "Most frequent confusions"
        return {"title": title, "columns": columns, "rows": pairs, "note": "", "compact": True}
    shades = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    rows = [[name, *(str(n) if n else "" for n in row)] for name, row in zip(names, matrix.tolist(), strict=True)]
    note = "Rows: label; columns: predicted class; number of images, darker for a larger fraction of the row."
    return {
        "title": "Confusion matrix", "columns": ["", *names], "rows": rows, "note": note,
        "shades": [[round(x, 3) for x in row] for row in shades.tolist()],
    }  # fmt: skip
