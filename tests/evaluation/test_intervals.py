"""Intervals that cover as often as they say, and permutation tests against exact counts."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from scipy.stats import t as student

from simclr.evaluation.intervals import (
    bootstrap_interval,
    class_interval,
    permutation_test,
    permutation_test_of,
    resampled_interval,
    seed_interval,
)
from simclr.evaluation.metrics import accuracy


def test_permutation_test_is_the_sign_test_of_discordant_images():
    rng = np.random.default_rng(0)
    a, b = (rng.random(500) < 0.7).astype(float), (rng.random(500) < 0.62).astype(float)
    wins, losses = int((a > b).sum()), int((a < b).sum())
    exact = binomtest(wins, wins + losses).pvalue
    assert permutation_test(a, b) == pytest.approx(exact, abs=0.005)
    assert permutation_test(a, a) == 1.0


def test_permutation_test_of_equal_networks_is_uniform():
    rng = np.random.default_rng(1)
    weights = rng.choice([0.2, 1.0, 3.0], 300)
    found = []
    for seed in range(300):
        a, b = (rng.random(300) < 0.6) * weights, (rng.random(300) < 0.6) * weights
        found.append(permutation_test(a, b, samples=500, seed=seed))
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


def test_both_forms_of_the_test_agree():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    a = torch.randn(200, 3, generator=generator) + 1.2 * torch.eye(3)[labels]
    b = torch.randn(200, 3, generator=generator) + 0.8 * torch.eye(3)[labels]
    ours, theirs = ((x.argmax(1) == labels).double().numpy() for x in (a, b))
    assert permutation_test_of(accuracy, a, b, labels, samples=2000) == pytest.approx(
        permutation_test(ours, theirs), abs=0.03
    )


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [200, 60, 40])
    rates = np.array([0.9, 0.6, 0.3])
    covered = []
    for _ in range(300):
        low, high = class_interval((rng.random(300) < rates[labels]).astype(float), labels)
        covered.append(low <= rates.mean() <= high)
    assert 0.89 < np.mean(covered) < 0.98
    spans = [seed_interval((5 + rng.normal(size=3)).tolist()) for _ in range(2000)]
    of_seeds = [low <= 5 <= high for low, high in spans]
    assert np.mean(of_seeds) == pytest.approx(0.95, abs=0.02)
    with pytest.raises(ValueError):  # noqa: PT011 - a mistake in a program
        seed_interval([0.5])


def test_resampled_interval_of_a_mean_is_that_of_the_mean():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(400, 2, generator=generator), torch.randint(2, (400,), generator=generator)
    low, high = resampled_interval(accuracy, scores, labels)
    value = accuracy(scores, labels)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * (value * (1 - value) / 400) ** 0.5, rel=0.2)


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.960), (0.90, 1.645), (0.99, 2.576)])
def test_intervals_are_as_wide_as_their_level_says(level, deviations):
    correct, classes = np.repeat([0.0, 1.0], 2000), np.tile([0, 1], 2000)
    width = 2 * deviations * 0.5 / np.sqrt(4000)
    named = {} if level == 0.95 else {"level": level}  # which is the default
    for interval in (
        bootstrap_interval(correct, rounds=20_000, **named),
        bootstrap_interval(2 * correct, rounds=4_000, **named),  # resampled, since not all values are 0 or 1
        class_interval(correct, classes, rounds=20_000, **named),
    ):
        scale = 2 if interval[1] > 0.8 else 1
        assert (interval[1] - interval[0]) / scale == pytest.approx(width, rel=0.06)


def test_an_interval_over_seeds_is_students():
    values = [0.71, 0.74, 0.72, 0.69]
    for level, named in ((0.95, {}), (0.9, {"level": 0.9})):
        expected = student.interval(level, 3, np.mean(values), np.std(values, ddof=1) / 2)
        assert seed_interval(values, **named) == pytest.approx(expected)
