"""Confusion matrices against scikit-learn."""

import numpy as np
from sklearn.metrics import confusion_matrix as reference
from sklearn.metrics import precision_score, recall_score

from simclr.evaluation.confusion import confusion_matrix, frequent_confusions, recall_and_precision


def test_matrix_recall_and_precision_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(5, size=(2, 200))
    matrix = confusion_matrix(labels, predicted, 6)
    np.testing.assert_array_equal(matrix, reference(labels, predicted, labels=range(6)))
    recall, precision = recall_and_precision(matrix)
    np.testing.assert_allclose(recall[:5], recall_score(labels, predicted, average=None))
    np.testing.assert_allclose(precision[:5], precision_score(labels, predicted, average=None))
    assert np.isnan(recall[5]) and np.isnan(precision[5])


def test_confusions_are_listed_by_frequency():
    matrix = np.array([[9, 1, 0], [3, 9, 0], [0, 2, 9]])
    assert frequent_confusions(matrix, 2) == [(1, 0, 3), (2, 1, 2)]
    assert frequent_confusions(matrix, 9) == [(1, 0, 3), (2, 1, 2), (0, 1, 1)]
