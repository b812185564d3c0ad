"""Test images as a model sees them: their classes, their map and nearest neighbours, kept beside a result file for the
report."""

import contextlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.data import Source
from simclr.data.arrays import read_arrays
from simclr.errors import DataError, SettingError
from simclr.evaluation.features import Features
from simclr.evaluation.neighbours import nearest
from simclr.evaluation.projection import pca
from simclr.randomness import permutation
from simclr.runs.files import replacing

MAPPED = 10_000  # images of the map at most, evenly spaced over all
QUERIES, NEIGHBOURS = 8, 5  # images whose neighbours are kept, of different classes as far as there are


class Examples(NamedTuple):
    """N test images of a measurement."""

    data: str
    """data set, as given to the command; empty for one that is no text"""
    names: np.ndarray
    """name of each image, (N,)"""
    labels: Int64[np.ndarray, " n"]
    predicted: Int64[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    """probability of the predicted class, or its fraction of the votes"""
    classes: np.ndarray
    """name of each class"""
    mapped: Int64[np.ndarray, " m"] = np.zeros(0, np.int64)
    """images of the map, and"""
    points: Float[np.ndarray, "m p"] = np.zeros((0, 2))
    """their first two principal components"""
    explained: Float[np.ndarray, " p"] = np.zeros(2)
    """fraction of the variance that each of these explains"""
    queries: Int64[np.ndarray, " q"] = np.zeros(0, np.int64)
    """images, and"""
    neighbours: Int64[np.ndarray, "q k"] = np.zeros((0, 0), np.int64)
    """the other images that are nearest to each, with"""
    cosines: Float[np.ndarray, "q k"] = np.zeros((0, 0))
    """their similarities"""


def examples_of(data: Any, source: Source, tested: Features, probabilities: Float[Tensor, "n c"]) -> Examples:
    """Return the test images of a source with the class probabilities, or votes, of each."""
    predicted = probabilities.argmax(1)
    confidence = probabilities.gather(1, predicted[:, None])[:, 0] / probabilities.sum(1)
    names = np.array([source.path(i) for i in tested.indices.tolist()], str)
    text = data if isinstance(data, str) else ""
    labels = tested.labels.cpu().numpy()
    return Examples(text, names, labels, predicted.cpu().numpy(), confidence.cpu().numpy(), np.array(source.classes))


def with_features(examples: Examples, features: Float[Tensor, "n d"], seed: int) -> Examples:
    """Return the images with their map and, for some of them, their nearest neighbours, as far as features allow it."""
    n = len(features)
    if n < 3 or features.shape[1] < 2 or not features.isfinite().all():
        return examples
    mapped = np.unique(np.linspace(0, n - 1, min(n, MAPPED)).astype(np.int64))
    points, explained = pca(features[torch.from_numpy(mapped)])
    order = permutation(seed, 0, n)
    first = order[np.sort(np.unique(examples.labels[order], return_index=True)[1])]
    queries = np.concatenate([first, np.setdiff1d(order, first)])[: min(QUERIES, n)]
    rows = torch.from_numpy(queries)
    cosines, neighbours = nearest(features, features[rows], min(NEIGHBOURS, n - 1), exclude=rows)
    return examples._replace(
        mapped=mapped, points=points.astype(np.float32), explained=explained, queries=queries,
        neighbours=neighbours.numpy(), cosines=cosines.numpy(),
    )  # fmt: skip


def require_examples_path(path: Path) -> Path:
    """Return the result file `path` if the images can be written beside it, where only older ones are replaced."""
    beside = path.with_suffix(".npz")
    if path.suffix.lower() == ".npz":
        remedy = f"The test images of the result are written to {beside.name}"
        raise SettingError("out", "the path of a JSON file, not of an .npz file", str(path), remedy)
    if beside.exists() and not _holds_examples(beside):
        remedy = f"{beside}, where the test images of the result are written, is another file; choose another --out"
        raise SettingError("out", "a path without another .npz file beside it", str(path), remedy)
    return path


def _holds_examples(file: Path) -> bool:
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        return {f"{name}.npy" for name in Examples._fields} == set(archive.namelist())
    return False


def save_examples(examples: Examples, path: Path) -> None:
    """Write the images beside the result file `path`, in the place of older ones."""
    with replacing(path.with_suffix(".npz")) as file:
        np.savez_compressed(file, **examples._asdict())


def read_examples(path: Path) -> Examples | None:
    """Return the images of the result file `path`; None if there are none or they cannot be read."""
    file = path.with_suffix(".npz")
    try:
        content = read_arrays(file) if file.is_file() else {}
        examples = Examples(**content)
    except (DataError, TypeError):
        return None
    return examples._replace(data=str(examples.data)) if _is_complete(examples) else None


def _is_complete(e: Examples) -> bool:
    """Return whether the arrays of a file fit together."""
    n, c, m, q = len(e.names), len(e.classes), len(e.mapped), len(e.queries)
    shapes = [(e.labels, (n,)), (e.predicted, (n,)), (e.confidence, (n,)), (e.points, (m, 2)), (e.explained, (2,)),
              (e.cosines, e.neighbours.shape)]  # fmt: skip
    limits = [(e.labels, c), (e.predicted, c), (e.mapped, n), (e.queries, n), (e.neighbours, n)]
    return (
        all(array.shape == shape for array, shape in shapes)
        and len(e.neighbours) == q
        and all(array.dtype.kind in "iu" and 0 <= array.min(initial=0) <= array.max(initial=0) < max(limit, 1)
                for array, limit in limits)
    )  # fmt: skip
