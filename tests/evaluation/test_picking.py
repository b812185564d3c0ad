"""Picks on embeddings with known clusters."""

import numpy as np
import pytest
import torch

from simclr.evaluation.distances import coverage
from simclr.evaluation.picking import pick_diverse, pick_margin, pick_random, pick_typical, spherical_clusters

SIZES = (200, 120, 60, 40, 30, 20, 15, 15)


@pytest.fixture(scope="module")
def clusters() -> tuple[torch.Tensor, np.ndarray]:
    """Clusters of unequal size around orthogonal directions."""
    own = np.repeat(np.arange(len(SIZES)), SIZES)
    noise = torch.randn(len(own), 16, generator=torch.Generator().manual_seed(0))
    return 5 * torch.eye(16)[torch.from_numpy(own)] + 0.3 * noise, own


def test_k_means_finds_the_clusters(clusters):
    x, own = clusters
    found = spherical_clusters(torch.nn.functional.normalize(x, dim=1), len(SIZES), seed=0)
    assert len(set(zip(found.tolist(), own.tolist(), strict=True))) == len(SIZES)


@pytest.mark.parametrize("method", ["typical", "diverse"])
def test_picks_cover_every_cluster_and_more_than_random_ones(clusters, method):
    x, own = clusters
    nothing = np.empty(0, np.int64)
    pick = {"typical": pick_typical, "diverse": lambda *a, **_: pick_diverse(*a[:3])}[method]
    rows = pick(x, len(SIZES), nothing, 0)
    random = [pick_random(x, len(SIZES), nothing, seed) for seed in range(20)]
    assert len(set(own[rows])) == len(SIZES)
    assert np.mean([len(set(own[draw])) for draw in random]) < 6
    assert coverage(x, rows) < 0.9 * np.mean([coverage(x, draw) for draw in random])


def test_a_second_pick_covers_what_the_first_has_left_out(clusters):
    x, own = clusters
    first = pick_typical(x, 4, np.empty(0, np.int64), 0)
    second = pick_typical(x, 4, first, 0)
    assert not set(first) & set(second)
    assert len(set(own[np.concatenate([first, second])])) == len(SIZES)
    assert set(own[first]) == {0, 1, 2, 3}  # the largest clusters first, and then the others


def test_margin_picks_images_between_the_classes():
    angle = np.linspace(0, np.pi / 2, 200)
    x = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1)).float()
    labelled = np.array([0, 10, 20, 180, 190, 199])
    rows = pick_margin(x, 4, labelled, {0: 0, 10: 0, 20: 0, 180: 1, 190: 1, 199: 1})
    assert ((rows > 75) & (rows < 125)).all()
    assert np.diff(np.sort(rows)).min() > 4  # not all in one place


def test_every_image_can_be_picked_once():
    x = torch.ones(12, 3)  # a single point
    for rows in (pick_typical(x, 12, np.empty(0, np.int64)), pick_diverse(x, 12, np.empty(0, np.int64))):
        assert sorted(rows.tolist()) == list(range(12))
