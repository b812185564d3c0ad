"""Confidence intervals over test images or seeds, and the permutation test between two networks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.stats import beta
from scipy.stats import t as student
from torch import Tensor

SAMPLES = 100_000  # number of samples of the permutation test (paper, App. B.8)
ROUNDS = 200  # of a bootstrap that computes a metric anew for each sample
Interval = tuple[float, float]


def bootstrap_interval(correct: np.ndarray, *, level: float = 0.95, rounds: int = 2000, seed: int = 0) -> Interval:
    """Return the interval of the mean of `correct` (N,), values from 0 to 1, by the Bayesian bootstrap: the variation
    between samples of as many test images, not between training runs.

    Images have random weights (Rubin 1981), and half an image more at 0 and at 1. For values that are 0 or 1 this is
    Jeffreys' interval, which is not of zero width where all are equal (Brown, Cai and DasGupta 2001).
    """
    return _weighted_interval(correct, (0.0, 1.0), level, rounds, seed)


def difference_interval(
    a: np.ndarray, b: np.ndarray, *, level: float = 0.95, rounds: int = 2000, seed: int = 0
) -> Interval:
    """Return the interval of the mean of `a - b`, values (N,) from 0 to 1 of the same images, as that of
    `bootstrap_interval`, with half an image more at -1 and at 1."""
    return _weighted_interval(np.subtract(a, b, dtype=float), (-1.0, 1.0), level, rounds, seed)


def class_interval(correct: np.ndarray, labels: np.ndarray, *, level: float = 0.95) -> Interval:
    """Return the interval of the accuracy within each class, averaged over classes.

    The mean m of the accuracies p of C classes of n images each has the variance V = sum(v / n) / C², where
    v = p (1 - p) + 1 / (4 n) is not below the variance of an image in the mean, however few images a class has. It is
    as precise as the accuracy of N = max(m (1 - m), mean(v)) / V images, the effective sample size (Korn and Graubard
    1998), whose Jeffreys interval is returned: quantiles of Beta(N m + 1/2, N (1 - m) + 1/2).
    """
    classes = [correct[labels == c] for c in np.unique(labels)]
    n, p = np.array([len(c) for c in classes]), np.array([c.mean() for c in classes])
    mean, each = float(p.mean()), p * (1 - p) + 1 / (4 * n)
    size = max(mean * (1 - mean), each.mean()) / ((each / n).sum() / len(n) ** 2)
    tails = (1 - level) / 2, (1 + level) / 2
    return _around(mean, *beta.ppf(tails, size * mean + 0.5, size * (1 - mean) + 0.5))


def resampled_interval(
    metric: Callable[[Tensor, Tensor], float], scores: Float[Tensor, "n c"], truth: Shaped[Tensor, "n ..."]
) -> Interval | None:
    """Return the 95 % bootstrap interval of a metric that is not a mean over images; None if all samples have the same
    value, as those of a single image do."""
    rng = np.random.default_rng(0)
    draws = [torch.from_numpy(rng.integers(0, len(scores), len(scores))) for _ in range(ROUNDS)]
    values = np.array([metric(scores[rows], truth[rows]) for rows in draws])
    return _middle(values, 0.95) if np.ptp(values) else None


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


def _weighted_interval(values: np.ndarray, ends: Interval, level: float, rounds: int, seed: int) -> Interval:
    levels, index = np.unique(np.concatenate([np.asarray(values, float), ends]), return_inverse=True)
    # equal values have the sum of their images' exponential weights; a value at an end of the range has half a one more
    weights = np.bincount(index) - 0.5 * np.isin(levels, ends)
    draws = np.random.default_rng(seed).gamma(weights, size=(rounds, len(levels)))
    return _around(float(np.mean(values)), *_middle(draws @ levels / draws.sum(1), level))


def _around(value: float, low: float, high: float) -> Interval:
    """Return an interval that includes the value itself, which may be at an end of its range."""
    return min(float(low), value), max(float(high), value)


def _middle(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
