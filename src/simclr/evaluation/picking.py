"""Selection of the images to label next: typical ones, uncertain ones, or those that cover the collection.

Rows are unit embeddings; every selection leaves out the images that are labelled already.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.errors import DataError
from simclr.evaluation.distances import neighbourhood
from simclr.evaluation.logistic import fit_path
from simclr.evaluation.neighbours import nearest
from simclr.losses import unit_rows
from simclr.randomness import PICK_STREAM, permutation, uniforms

MAX_CLUSTERS = 500  # as in TypiClust (Hacohen et al. 2022)
TYPICAL_NEIGHBOURS = 20  # of the density of an image within its cluster, as there
COMPARED = 10_000  # images of a cluster among which these neighbours are looked for
ITERATIONS = 30
POOL = 10  # uncertain images for each one that is picked
Rows = Int64[np.ndarray, "_"]


def pick_random(features: Float[Tensor, "n d"], count: int, labelled: Rows, seed: int = 0) -> Rows:
    """Return random images: the baseline."""
    order = permutation(seed, 0, len(features))
    return order[~np.isin(order, labelled)][:count].astype(np.int64)


def pick_typical(features: Float[Tensor, "n d"], count: int, labelled: Rows, seed: int = 0) -> Rows:
    """Return the densest unlabelled image of each of the largest clusters that have no labelled image yet (TypiClust).

    There are as many clusters as images are labelled afterwards, at most 500; when each has its image, those with the
    fewest have a further one.
    """
    x = unit_rows(features.float())
    clusters = min(len(labelled) + count, MAX_CLUSTERS)
    own = spherical_clusters(x, clusters, seed)
    taken, size = np.bincount(own[labelled], minlength=clusters), np.bincount(own, minlength=clusters)
    spread = _spread_in_cluster(x, own, clusters, seed)
    spread[labelled] = np.inf
    candidates = [list(members[np.argsort(spread[members], kind="stable")]) for members in
                  (np.flatnonzero((own == c) & np.isfinite(spread)) for c in range(clusters))]  # fmt: skip
    chosen: list[int] = []
    while len(chosen) < count:
        c = min((c for c in range(clusters) if candidates[c]), key=lambda c: (taken[c], -size[c]))
        chosen.append(int(candidates[c].pop(0)))
        taken[c] += 1
    return np.array(chosen, np.int64)


def pick_diverse(features: Float[Tensor, "n d"], count: int, labelled: Rows, pool: Rows | None = None) -> Rows:
    """Return the images of a pool (default: all) that are farthest from the labelled and the chosen ones, one after
    the other (greedy k-centre). Without labelled images the first is the one nearest to the mean."""
    x = unit_rows(features.float())
    free = torch.zeros(len(x), dtype=torch.bool)
    free[torch.from_numpy(np.setdiff1d(np.arange(len(x)) if pool is None else pool, labelled))] = True
    closest = nearest(x[torch.from_numpy(labelled)], x, 1)[0][:, 0] if len(labelled) else -(x @ x.mean(0))
    chosen: list[int] = []
    while len(chosen) < count:
        row = int(closest.masked_fill(~free, torch.inf).argmin())
        cosine = x @ x[row]
        closest = torch.maximum(closest, cosine) if chosen or len(labelled) else cosine
        free[row] = False
        chosen.append(row)
    return np.array(chosen, np.int64)


def pick_margin(features: Float[Tensor, "n d"], count: int, labelled: Rows, labels: dict[int, int]) -> Rows:
    """Return images that logistic regression is unsure of: of the ten times `count` unlabelled images with the smallest
    difference of the two largest probabilities, those that `pick_diverse` picks. `labels` are the known classes by
    row."""
    classes, y = np.unique(list(labels.values()), return_inverse=True)
    if len(classes) < 2:
        raise DataError("labels", "hold one class only; margin needs at least two", "Pick with --method typical")
    scaled = features / features.std(0).square().mean().sqrt()
    classifier = fit_path(scaled[list(labels)], torch.from_numpy(y), len(classes), [1.0])[0]
    best = classifier(scaled).softmax(1).topk(2, dim=1).values
    margin = (best[:, 0] - best[:, 1]).numpy()
    margin[labelled] = np.inf
    pool = np.argsort(margin, kind="stable")[: min(POOL * count, len(features) - len(labelled))]
    return pick_diverse(features, count, labelled, pool)


def spherical_clusters(x: Float[Tensor, "n d"], clusters: int, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Return the cluster of each unit row by k-means with centres of unit length, started by k-means++."""
    centres = _first_centres(x, clusters, seed)
    own = torch.full((len(x),), -1)
    for _ in range(ITERATIONS):
        before, own = own, nearest(centres, x, 1)[1][:, 0]
        if torch.equal(before, own):
            break
        sums = torch.zeros_like(centres).index_add_(0, own, x)
        empty = torch.bincount(own, minlength=clusters) == 0
        centres = torch.where(empty[:, None], centres, unit_rows(sums))
    return own.numpy()


def _first_centres(x: Tensor, clusters: int, seed: int) -> Tensor:
    """Return rows, each the best of some that are drawn with a probability that grows with the squared distance to the
    rows before it (greedy k-means++, with the number of draws of scikit-learn)."""
    rows: list[int] = []
    squared = torch.ones(len(x), dtype=torch.float64)
    for k in range(clusters):
        cumulated = squared.cumsum(0) if squared.any() else torch.ones_like(squared).cumsum(0)  # few distinct rows
        draws = uniforms(seed, k, np.zeros(1, np.int64), PICK_STREAM, 2 + int(np.log(clusters)))[0] * float(
            cumulated[-1]
        )
        drawn = torch.searchsorted(cumulated, torch.from_numpy(draws), right=True).clamp_max(len(x) - 1)
        distances = (2 - 2 * (x @ x[drawn].T)).clamp_min(0).double()
        if rows:
            distances = torch.minimum(distances, squared[:, None])
        best = int(distances.sum(0).argmin())
        rows.append(int(drawn[best]))
        squared = distances[:, best]
    return x[rows].clone()


def _spread_in_cluster(x: Tensor, own: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Return the mean distance of each row to its nearest neighbours among (at most 10,000) rows of its cluster."""
    spread = np.full(len(x), np.inf)
    for c in range(clusters):
        members = np.flatnonzero(own == c)
        if len(members) < 2:
            spread[members] = 0.0
            continue
        bank = members[permutation(seed, c, len(members))[:COMPARED]]
        position = np.full(len(x), -1)
        position[bank] = np.arange(len(bank))
        rows = torch.from_numpy(members)
        found = neighbourhood(x[torch.from_numpy(bank)], min(TYPICAL_NEIGHBOURS, len(bank) - 1) + 1, x[rows]).distances
        is_self = position[members] >= 0  # its own distance, 0, comes first
        spread[members] = np.where(is_self, found[:, 1:].mean(1), found[:, :-1].mean(1))
    return spread
