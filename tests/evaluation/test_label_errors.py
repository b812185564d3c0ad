"""Planted label errors."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from simclr.evaluation.label_errors import (
    cleanlab_issues,
    cross_validated_probabilities,
    self_confidence,
    stratified_folds,
)


@pytest.fixture(scope="module")
def planted():
    """Overlapping classes with 5 % of wrong labels: features, labels, and which are wrong."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 150)
    x = 3 * np.eye(4)[truth] @ rng.standard_normal((4, 12)) / 2 + rng.standard_normal((600, 12))
    wrong = np.zeros(600, bool)
    wrong[rng.choice(600, 30, replace=False)] = True
    labels = np.where(wrong, (truth + rng.integers(1, 4, 600)) % 4, truth)
    probabilities = cross_validated_probabilities(torch.from_numpy(x).float(), torch.from_numpy(labels), 4)
    return labels, wrong, probabilities


def test_planted_errors_are_ranked_first(planted):
    labels, wrong, probabilities = planted
    scores, suspect = self_confidence(probabilities, labels)
    assert roc_auc_score(wrong, -scores) > 0.97
    assert wrong[np.argsort(scores)[:30]].mean() > 0.7  # chance: 0.05
    assert suspect[wrong].mean() > 0.9
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_cleanlab_suspects_the_same_images(planted):
    pytest.importorskip("cleanlab")
    labels, wrong, probabilities = planted
    scores, suspect = cleanlab_issues(probabilities, labels)
    np.testing.assert_allclose(scores, self_confidence(probabilities, labels)[0], atol=1e-6)
    assert suspect[wrong].mean() > 0.8
    assert wrong[suspect].mean() > 0.5


def test_probabilities_of_an_image_do_not_depend_on_its_label(planted):
    rng = np.random.default_rng(1)
    x, labels = torch.from_numpy(rng.standard_normal((300, 20))).float(), rng.integers(2, size=300)
    probabilities = cross_validated_probabilities(x, torch.from_numpy(labels), 2)
    scores, _ = self_confidence(probabilities, labels)
    assert abs(roc_auc_score(labels, probabilities[:, 1]) - 0.5) < 0.12  # noise cannot be predicted
    assert abs(scores.mean() - 0.5) < 0.05


def test_folds_have_the_same_number_of_each_class():
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    folds = stratified_folds(labels, 5, seed=3)
    counts = np.array([np.bincount(folds[labels == y], minlength=5) for y in range(3)])
    np.testing.assert_array_equal(counts, [[10] * 5, [4] * 5, [1] * 5])
