"""Confidence intervals over test images or seeds, and the permutation test between two networks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.stats import t as student
from torch import Tensor

SAMPLES = 100_000  # number of samples of the permutation test (paper, App. B.8)
ROUNDS = 200  # of a bootstrap that computes a metric anew for each sample
Interval = tuple[float, float]


def bootstrap_interval(correct: np.ndarray, *, level: float = 0.95, rounds: int = 2000, seed: int = 0) -> Interval:
    """Return the bootstrap interval of the mean of `correct` (N,): the variation between samples of as many test
    images, not between training runs."""
    rng = np.random.default_rng(seed)
    n = len(correct)
    # the sum of resampled 0/1 values is binomial; other values are resampled
    if set(np.unique(correct)) <= {0, 1}:
        means = rng.binomial(n, correct.mean(), rounds) / n
    else:
        means = np.array([correct[rng.integers(0, n, n)].mean() for _ in range(rounds)])
    return _middle(means, level)


def class_interval(correct: np.ndarray, labels: np.ndarray, *, level: float = 0.95, rounds: int = 2000) -> Interval:
    """Return the bootstrap interval of the accuracy within each class, averaged over classes: each class is
    resampled."""
    rng = np.random.default_rng(0)
    classes = [correct[labels == c] for c in np.unique(labels)]
    return _middle(np.mean([rng.binomial(len(c), c.mean(), rounds) / len(c) for c in classes], axis=0), level)


def resampled_interval(
    metric: Callable[[Tensor, Tensor], float], scores: Float[Tensor, "n c"], truth: Shaped[Tensor, "n ..."]
) -> Interval:
    """Return the 95 % bootstrap interval of a metric that is not a mean over images."""
    rng = np.random.default_rng(0)
    draws = [torch.from_numpy(rng.integers(0, len(scores), len(scores))) for _ in range(ROUNDS)]
    return _middle(np.array([metric(scores[rows], truth[rows]) for rows in draws]), 0.95)


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return Student's interval of the mean over training runs that differ in their seed."""
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval over seeds needs at least two runs, got {n}")
    half = float(student.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def permutation_test(a: np.ndarray, b: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired permutation test that the sums of two rows (N,) are equal, such as the
    hits of two networks on the same images."""
    sizes, counts = np.unique(np.abs(a - b)[a != b], return_counts=True)
    if not len(sizes):
        return 1.0
    rng = np.random.default_rng(seed)
    # each pair has a random sign; for pairs of equal size only the number of positive signs matters
    sums = sum(size * (2.0 * rng.binomial(count, 0.5, samples) - count)
               for size, count in zip(sizes, counts, strict=True))  # fmt: skip
    observed = abs(float((a - b).sum()))
    return float((1 + np.count_nonzero(np.abs(sums) >= observed * (1 - 1e-9))) / (1 + samples))


def permutation_test_of(
    metric: Callable[[Tensor, Tensor], float], a: Float[Tensor, "n c"], b: Float[Tensor, "n c"],
    truth: Shaped[Tensor, "n ..."], *, samples: int = 1000,
) -> float:  # fmt: skip
    """Return the p-value of the paired permutation test for a metric that is not a mean over images: the scores of the
    two networks are exchanged at random for each image."""
    rng = np.random.default_rng(0)
    observed = abs(metric(a, truth) - metric(b, truth))
    extreme = 0
    for _ in range(samples):
        swap = torch.from_numpy(rng.random(len(a)) < 0.5)[:, None]
        extreme += abs(metric(torch.where(swap, b, a), truth) - metric(torch.where(swap, a, b), truth)) >= observed
    return (1 + extreme) / (1 + samples)


def _middle(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
