"""Types and shapes of signatures are checked in the tests."""

import pytest
import torch
from jaxtyping import TypeCheckError

from simclr.evaluation.features import Features
from simclr.evaluation.logistic import fit_decreasing
from simclr.evaluation.neighbours import knn_votes
from simclr.views.preprocess import Preprocess

BANK, LABELS = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: knn_votes(BANK, LABELS, torch.rand(2, 5), 3, k=2),  # queries of another width than the bank
        lambda: knn_votes(BANK, LABELS[:5], torch.rand(2, 4), 3, k=2),
        lambda: knn_votes(BANK, LABELS.float(), torch.rand(2, 4), 3, k=2),
        lambda: knn_votes(BANK, LABELS, torch.rand(2, 4), "3", k=2),
        lambda: Features(BANK, LABELS, LABELS, {}).to([3]),
        lambda: list(fit_decreasing(BANK, LABELS[:5], 3, [1.0], tolerance=0.1, max_iterations=2)),
        lambda: Preprocess(size="8"),
    ],
)
def test_a_call_that_does_not_fit_a_signature_is_refused(wrong):
    with pytest.raises(TypeCheckError):
        wrong()


def test_a_call_that_fits_is_not():
    assert knn_votes(BANK, LABELS, torch.rand(2, 4), 3, k=2).shape == (2, 3)
