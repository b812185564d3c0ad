"""Approximate search: the cosines are exact, and the recall is what it says."""

import pytest
import torch

from simclr.evaluation.approximate import SAMPLE, nearest_approximate
from simclr.evaluation.distances import neighbourhood
from simclr.evaluation.neighbours import nearest

pytest.importorskip("faiss")


@pytest.mark.parametrize("recall", [0.5, 0.99])
def test_recall_is_measured_and_cosines_are_exact(recall):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 16, generator=generator)
    bank = (centres[:, None] + 0.3 * torch.randn(40, 100, 16, generator=generator)).flatten(0, 1)
    queries = bank[::20] + 0.1 * torch.randn(200, 16, generator=generator)
    assert len(queries) < SAMPLE  # so that the recall is of all queries
    cosines, rows, found = nearest_approximate(bank, queries, 10, recall=recall)
    _, true = nearest(bank, queries, 10)
    assert found >= recall
    assert found == pytest.approx((true[:, :, None] == rows[:, None, :]).any(2).double().mean().item())
    expected = torch.cosine_similarity(queries[:, None], bank[rows], dim=2)
    torch.testing.assert_close(cosines, expected)
    assert (cosines.diff(dim=1) <= 0).all()


def test_few_embeddings_are_all_found():
    bank = torch.randn(5, 4)
    _, rows, found = nearest_approximate(bank, bank, 10)
    assert rows.shape == (5, 5)
    assert found == 1.0
    assert rows[:, 0].tolist() == list(range(5))


def test_an_approximate_neighbourhood_leaves_the_image_itself_out_and_states_its_recall():
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(3000, 8, generator=generator)
    bank[1] = bank[0]
    found, true = neighbourhood(bank, 5, approximate=True), neighbourhood(bank, 5)
    assert (found.rows != torch.arange(3000)[:, None].numpy()).all()
    assert found.distances[0, 0] == true.distances[0, 0] == 0
    hits = (true.rows[:, :, None] == found.rows[:, None, :]).any(2).mean()
    assert found.recall >= 0.99
    assert hits == pytest.approx(found.recall, abs=0.02)
    assert true.recall == 1.0
