"""Distances between embeddings: nearest neighbours, groups of near-duplicates, outliers and coverage; copies of images.

A distance is the Euclidean distance of unit rows, sqrt(2 - 2 cosine), from 0 to 2. All of it runs in blocks: no array
grows with the square of the number of images. The time of the exact search does; the approximate one proposes
neighbours, whose distances are exact too.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simclr.errors import DataError
from simclr.evaluation.approximate import RECALL, nearest_approximate
from simclr.evaluation.neighbours import nearest
from simclr.losses import unit_rows

GATHERED = 1 << 24  # numbers of neighbouring rows that are held at a time
IDENTICAL = 1e-5  # distance below which two embeddings are those of one image: float32 rounding, other batches
ALIKE = 0.98  # cosine of the miniatures of two images from which they are copies (results/curation)
COPIES, BLOCK = 10, 1 << 14  # neighbours of each image among which copies are looked for; pairs compared at a time
CONSISTENT = 1.4826  # of the median absolute deviation of a normal distribution to its standard deviation


class Neighbourhood(NamedTuple):
    """Nearest neighbours of N images, nearest first."""

    distances: Float64[np.ndarray, "n k"]
    rows: Int64[np.ndarray, "n k"]
    recall: float = 1.0
    """fraction of the true neighbours that were found, measured on a sample if the search was approximate"""


Search = Callable[..., Neighbourhood]


def neighbourhood(
    bank: Float[Tensor, "m d"],
    k: int,
    queries: Float[Tensor, "n d"] | None = None,
    exclude: Tensor | None = None,
    *,
    approximate: bool = False,
) -> Neighbourhood:
    """Return the k nearest rows of the bank to each query; without queries, to each row of the bank, itself excluded.

    Distances are computed from differences of the rows: the cosine of near-copies in float32 rounds to 1. The
    approximate search needs faiss, see `nearest_approximate`.
    """
    recall = 1.0
    if queries is None:
        queries, exclude = bank, torch.arange(len(bank))
    k = min(k, len(bank) - (exclude is not None))
    if k < 1:
        raise DataError("embeddings", f"there are {len(bank)}, too few to have neighbours")
    if approximate:
        own = int(exclude is not None)  # the excluded row is found too, and does not count for the recall
        _, rows, recall = nearest_approximate(bank, queries, k + own, recall=(RECALL * k + own) / (k + own))
        recall = (recall * (k + own) - own) / k
        if own:
            rows = rows.gather(1, (rows == exclude[:, None]).byte().argsort(dim=1, stable=True))[:, :k]
    else:
        rows = nearest(bank, queries, k, exclude=exclude)[1].cpu()
    distances = torch.empty(rows.shape, dtype=torch.float64)
    step = max(1, GATHERED // (k * bank.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        others = unit_rows(bank[part.flatten()].float()).view(*part.shape, -1)
        own = unit_rows(queries[start : start + step].float())
        distances[start : start + step] = (others - own[:, None]).double().norm(dim=2)
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbourhood(distances.numpy(), rows.gather(1, order).numpy(), recall)


def duplicate_threshold(nearest_distance: Float64[np.ndarray, " n"], fraction: float) -> float:
    """Return the distance below which two images are near-duplicates: a fraction of the median distance to the nearest
    neighbour, over images that have no identical copy. It does not depend on the scale of the embedding."""
    distinct = nearest_distance[nearest_distance > IDENTICAL]
    return max(fraction * float(np.median(distinct)) if len(distinct) else 0.0, IDENTICAL)


def distance_of_pairs(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float64[np.ndarray, " n"]:
    """Return the distance of each row of `a` from that of `b`."""
    return (unit_rows(a.float()) - unit_rows(b.float())).double().norm(dim=1).numpy()


def copies(
    bank: Float[Tensor, "m h w c"], queries: Float[Tensor, "n h w c"] | None = None, search: Search = neighbourhood
) -> Int64[np.ndarray, "p 2"]:
    """Return the pairs of a query and a row of the bank whose miniatures, one of them mirrored or not, have a cosine of
    at least `ALIKE`, among the ten nearest of each query; without queries, the pairs of rows of the bank.

    The nearest are those of the even part of each miniature and the absolute values of the odd part, which do not
    change when it is mirrored: their distance is at most that of the miniatures.
    """
    own = bank if queries is None else queries
    if len(bank) < 2 - (queries is not None) or not len(own):
        return np.empty((0, 2), np.int64)
    found = search(_even_and_odd(bank), COPIES, None if queries is None else _even_and_odd(queries))
    first, column = np.nonzero(found.distances <= np.sqrt(2 - 2 * ALIKE) + IDENTICAL)
    pairs = np.stack([first, found.rows[first, column]], 1)
    alike = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), BLOCK):
        a, b = (
            x[torch.from_numpy(i)].float() for x, i in zip((own, bank), pairs[start : start + BLOCK].T, strict=True)
        )
        cosine = torch.maximum((a * b).sum((1, 2, 3)), (a * b.flip(2)).sum((1, 2, 3)))
        alike[start : start + BLOCK] = (cosine >= ALIKE).numpy()
    return pairs[alike]


def _even_and_odd(miniatures: Float[Tensor, "n h w c"]) -> Float[Tensor, "n d"]:
    mirrored = miniatures.flip(2)
    return torch.cat([(miniatures + mirrored).flatten(1), (miniatures - mirrored).abs().flatten(1)], 1)


def duplicate_groups(
    neighbours: Neighbourhood, threshold: float, others: Int64[np.ndarray, "p 2"] | None = None
) -> Int64[np.ndarray, " n"]:
    """Return the group of each image, -1 for none: images belong to one group if a chain of neighbours within the
    threshold, or of other pairs, connects them. Groups are numbered by their first image."""
    n = len(neighbours.rows)
    first, column = np.nonzero(neighbours.distances <= threshold)
    second = neighbours.rows[first, column]
    if others is not None:
        first, second = np.append(first, others[:, 0]), np.append(second, others[:, 1])
    pairs = (first.astype(np.int32), second.astype(np.int32))  # the only type that scipy took before 1.13
    graph = coo_array((np.ones(len(first), bool), pairs), shape=(n, n))
    component = connected_components(graph, directed=False)[1]
    connected = np.bincount(component)[component] > 1
    groups = np.full(n, -1, np.int64)
    _, start, number = np.unique(component[connected], return_index=True, return_inverse=True)
    groups[connected] = start.argsort().argsort()[number]
    return groups


def robust_outliers(scores: Float64[np.ndarray, " n"], deviations: float) -> tuple[Bool[np.ndarray, " n"], float]:
    """Return which scores are above the median by more than `deviations` robust standard deviations (1.4826 times the
    median absolute deviation), and that threshold."""
    median = float(np.median(scores))
    threshold = median + deviations * CONSISTENT * float(np.median(np.abs(scores - median)))
    return scores > threshold, threshold


def coverage(features: Float[Tensor, "n d"], chosen: Int64[np.ndarray, " m"]) -> float:
    """Return the mean distance of an image to the nearest of the chosen ones; lower is better."""
    return float(neighbourhood(features[torch.from_numpy(chosen)], 1, features).distances.mean())
