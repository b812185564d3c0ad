"""Intervals that cover as often as they say, and permutation tests against exact counts."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest
from scipy.stats import t as student

from simclr.evaluation.intervals import (
    bootstrap_interval,
    class_interval,
    difference_interval,
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


CLASSES = {  # number of images and accuracy of each class
    "one image each": ([1] * 10, np.linspace(0.1, 0.95, 10)),
    "one image of each of many": ([1] * 100, np.full(100, 0.9)),
    "three easy images each": ([3] * 10, np.full(10, 0.97)),
    "some images each": ([5] * 10, np.linspace(0.1, 0.95, 10)),
    "one class of few": ([1000, 1], np.array([0.99, 0.7])),
    "of all sizes": ([300, 20, 5, 2, 1, 1], np.array([0.95, 0.9, 0.7, 0.6, 0.5, 0.9])),
    "many images each": ([200] * 10, np.linspace(0.5, 0.99, 10)),
}


@pytest.mark.parametrize("case", CLASSES)
def test_the_mean_over_classes_is_covered_with_few_images_and_many(case):
    sizes, rates = CLASSES[case]
    rng, labels = np.random.default_rng(1), np.repeat(np.arange(len(sizes)), sizes)
    covered = []
    for _ in range(600):
        low, high = class_interval((rng.random(len(labels)) < rates[labels]).astype(float), labels)
        covered.append(low <= rates.mean() <= high)
    assert np.mean(covered) > 0.93  # 95 %, with the error of 600 draws
    assert case != "many images each" or np.mean(covered) < 0.97


@pytest.mark.parametrize(
    ("images", "wins", "losses"), [(1, 0.5, 0.2), (5, 0.3, 0.1), (30, 0.1, 0.05), (1000, 0.05, 0.03)]
)
def test_a_paired_difference_is_covered_with_few_images_and_many(images, wins, losses):
    rng, covered = np.random.default_rng(1), []
    for _ in range(600):
        drawn = rng.random(images)
        low, high = difference_interval(drawn < wins, drawn > 1 - losses)
        covered.append(low <= wins - losses <= high)
    assert np.mean(covered) > 0.93


def test_images_that_are_all_equal_leave_a_doubt():
    ones, classes = np.ones(3), np.arange(3)
    low, high = difference_interval(ones[:1], 0 * ones[:1])
    assert low < 0
    assert high == 1
    for images in (ones, 0 * ones):
        spans = [bootstrap_interval(images), class_interval(images, classes), class_interval(images, 0 * classes)]
        exact = beta.ppf([0.025, 0.975], images.sum() + 0.5, 3 - images.sum() + 0.5)  # of Jeffreys
        for low, high in spans:
            assert low <= images.mean() <= high
            assert (low, high) == pytest.approx((min(exact[0], images.mean()), max(exact[1], images.mean())), abs=0.03)
    low, high = difference_interval(ones, ones)
    assert low < 0 < high
    assert bootstrap_interval(ones) == bootstrap_interval(ones)
    assert resampled_interval(accuracy, torch.eye(2)[:1], torch.zeros(1, dtype=torch.long)) is None


def test_with_many_images_intervals_are_those_of_resampling():
    """The ends of 10,000 images move by less than 0.05 points."""
    rng = np.random.default_rng(0)
    a, b, labels = rng.random(10_000) < 0.9, rng.random(10_000) < 0.88, np.arange(10_000) % 10
    normal = lambda x: (x.mean() - 1.96 * x.std() / 100, x.mean() + 1.96 * x.std() / 100)
    assert bootstrap_interval(a, rounds=50_000) == pytest.approx(normal(a), abs=5e-4)
    assert difference_interval(a, b, rounds=50_000) == pytest.approx(normal(a.astype(float) - b), abs=5e-4)
    assert class_interval(a, labels) == pytest.approx(normal(a), abs=5e-4)


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
        difference_interval(correct, np.zeros(4000), rounds=20_000, **named),
        class_interval(correct, classes, **named),
    ):
        assert interval[1] - interval[0] == pytest.approx(width, rel=0.06)


def test_an_interval_over_seeds_is_students():
    values = [0.71, 0.74, 0.72, 0.69]
    for level, named in ((0.95, {}), (0.9, {"level": 0.9})):
        expected = student.interval(level, 3, np.mean(values), np.std(values, ddof=1) / 2)
        assert seed_interval(values, **named) == pytest.approx(expected)
