"""Suspected label errors: labels that a classifier, fitted on other images, finds improbable."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from simclr.evaluation.logistic import PATIENCE, PENALTIES, choose_and_refit, fit_path
from simclr.randomness import permutation

SPARSE = 3  # of the penalties, every third is tried


def stratified_folds(labels: Int64[np.ndarray, " n"], folds: int, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Return the fold of each image; the images of a class are distributed evenly over the folds, in random order."""
    order = permutation(seed, 0, len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def cross_validated_probabilities(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int, *, folds: int = 5, seed: int = 0
) -> Float64[np.ndarray, "n c"]:
    """Return the class probabilities of each image by logistic regression on the images of the other folds.

    The penalty is chosen once, by the cross-entropy of the first fold.
    """
    features = features / features.std(0).square().mean().sqrt()
    fold = stratified_folds(labels.numpy(), folds, seed)
    penalties, patience = PENALTIES[::SPARSE], -(-PATIENCE // SPARSE)
    metric = lambda scores, truth: -F.cross_entropy(scores, truth).item()
    chosen = choose_and_refit(features, labels, fold == 0, classes, penalties, metric, patience)[0].penalty
    probabilities = torch.empty(len(features), classes, dtype=torch.float64)
    for k in range(folds):
        rows = torch.from_numpy(fold == k)
        classifier = fit_path(features[~rows], labels[~rows], classes, [chosen])[0]
        probabilities[rows] = classifier(features[rows]).double().softmax(1)
    return probabilities.numpy()


def self_confidence(
    probabilities: Float64[np.ndarray, "n c"], labels: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return the probability of each given label, and whether another class is more probable."""
    given = probabilities[np.arange(len(labels)), labels]
    return given, probabilities.argmax(1) != labels


def cleanlab_issues(
    probabilities: Float64[np.ndarray, "n c"], labels: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return cleanlab's label quality scores and the images that its confident learning suspects."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    scores = get_label_quality_scores(labels, probabilities)
    return np.asarray(scores, np.float64), np.asarray(find_label_issues(labels, probabilities, n_jobs=1), bool)
