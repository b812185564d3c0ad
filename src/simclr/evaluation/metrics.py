"""Metrics of predictions and of embeddings."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from simclr.losses import unit_rows

RECALLS = np.linspace(0, 1, 11)
NEARLY_ALL = 0.95  # of the images, with the same predicted class
ROWS = 512  # of the pairs of `uniformity` that are held at a time


def correct(scores: Float[Tensor, "n c"], targets: Tensor) -> Float[Tensor, " n"]:
    """Return 1 for each image whose class is predicted, otherwise 0; for multi-label images the fraction of the classes
    whose presence is predicted."""
    if targets.ndim == 1:
        return (scores.argmax(1) == targets).double()
    return ((scores > 0) == targets).double().mean(1)


def accuracy(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> float:
    """Return the fraction of rows whose highest score is at the label."""
    return (scores.argmax(1) == labels).cpu().double().mean().item()


def mean_per_class(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> float:
    """Return the accuracy within each class that occurs, averaged over classes."""
    hits = (scores.argmax(1) == labels).cpu().double()
    labels = labels.cpu()
    return float(np.mean([hits[labels == c].mean().item() for c in labels.unique().tolist()]))


def constant_prediction(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> int | None:
    """Return the class that is predicted for all images, although they are of several classes, or for at least 95 % of
    them, although it is the class of fewer than half; None if there is none."""
    predicted, labels = scores.argmax(1).cpu(), labels.cpu()
    most = predicted.mode().values
    share, own = (predicted == most).double().mean().item(), (labels == most).double().mean().item()
    several = len(labels.unique()) > 1
    return int(most) if several and (share == 1 or (share >= NEARLY_ALL and own < 0.5)) else None


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Return the 11-point interpolated average precision of one class (VOC2007): the mean over recalls 0, 0.1, ..., 1
    of the highest precision at that recall or above. `scores` (N,), `present` (N,) bool; nan if the class never
    occurs."""
    hits = present[np.argsort(-scores, kind="stable")].cumsum()
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    precision = hits / np.arange(1, len(hits) + 1)
    best_beyond = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.mean([best_beyond[np.searchsorted(hits, recall * hits[-1] - 1e-9)] for recall in RECALLS]))


def map11(scores: Float[Tensor, "n c"], present: Bool[Tensor, "n c"]) -> float:
    """Return the 11-point average precision of multi-label images, averaged over the classes that occur."""
    columns = zip(scores.cpu().double().numpy().T, present.cpu().numpy().T, strict=True)
    return float(np.nanmean([average_precision(*column) for column in columns]))


METRICS = {"top1": accuracy, "mean_per_class": mean_per_class, "map11": map11}


@torch.no_grad()
def rankme(features: Float[Tensor, "n d"]) -> float:
    """Return the effective rank, exp(entropy of the normalised singular values) (Garrido et al. 2023); at most
    min(n, d)."""
    x = features.cpu().double()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    p = singular / singular.sum().clamp_min(1e-30) + 1e-7
    return torch.exp(-(p * p.log()).sum()).item()


@torch.no_grad()
def embedding_std(features: Float[Tensor, "n d"]) -> float:
    """Return the standard deviation of unit rows, averaged over dimensions, times sqrt(d): 1 for isotropic features, 0
    for features that have collapsed to a point (Chen and He 2021)."""
    unit = unit_rows(features.cpu().double())
    return (unit.std(0).mean() * unit.shape[1] ** 0.5).item()


@torch.no_grad()
def alignment(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float:
    """Return the mean squared distance of the unit rows of two views (Wang and Isola 2020); 0 is perfect."""
    return (unit_rows(a.cpu().double()) - unit_rows(b.cpu().double())).square().sum(1).mean().item()


@torch.no_grad()
def uniformity(features: Float[Tensor, "n d"], t: float = 2.0) -> float:
    """Return the log of the mean of exp(-t |x - y|^2) over pairs of unit rows (Wang and Isola 2020); about -4 is
    uniform.

    Pairs are taken in blocks of rows, so that memory does not grow with the square of n.
    """
    x = unit_rows(features.cpu().double())
    n, total = len(x), 0.0
    for start in range(0, n - 1, ROWS):
        distances = torch.cdist(x[start : start + ROWS], x[start:], compute_mode="donot_use_mm_for_euclid_dist")
        pairs = torch.ones_like(distances, dtype=torch.bool).triu(1)
        total += distances[pairs].square().mul(-t).exp().sum().item()
    return math.log(total / (n * (n - 1) / 2)) if n > 1 else math.nan
