"""Neighbour distances, near-duplicates and outliers, on embeddings whose structure is known."""

import numpy as np
import torch

from simclr.evaluation.distances import (
    ALIKE,
    copies,
    duplicate_groups,
    duplicate_threshold,
    neighbourhood,
    robust_outliers,
)


def cloud(n: int = 300, d: int = 16, seed: int = 0) -> torch.Tensor:
    """Random directions."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_distances_are_those_of_brute_force_in_float64():
    x = cloud()
    found = neighbourhood(x, 7)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    expected = distances.fill_diagonal_(torch.inf).sort(1)
    np.testing.assert_allclose(found.distances, expected.values[:, :7].numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.rows, expected.indices[:, :7].numpy())


def test_the_distance_of_near_copies_is_not_rounded_to_zero():
    x = cloud(20).repeat(2, 1)
    x[20:, 0] += 1e-3  # the cosine differs from 1 by less than float32 resolves
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    expected = (unit[:20] - unit[20:]).norm(dim=1).numpy()
    np.testing.assert_allclose(neighbourhood(x, 1).distances[:20, 0], expected, rtol=2e-3)


def test_planted_duplicates_are_found_in_groups_at_any_scale():
    x, rng = cloud(400), np.random.default_rng(0)
    planted = {5: [400, 401], 17: [402], 90: [403, 404, 405]}
    copies = [
        x[i] + 0.01 * torch.from_numpy(rng.standard_normal(16)).float() for i, rows in planted.items() for _ in rows
    ]
    x = torch.cat([x, torch.stack(copies)])
    expected = np.full(len(x), -1)
    for group, (first, rows) in enumerate(planted.items()):
        expected[[first, *rows]] = group
    for scale in (1e-3, 1.0, 1e3):
        found = neighbourhood(scale * x, 10)
        groups = duplicate_groups(found, duplicate_threshold(found.distances[:, 0], 0.3))
        np.testing.assert_array_equal(groups, expected)


def test_many_identical_images_are_one_group_and_leave_the_threshold_alone():
    x = torch.cat([cloud(100), cloud(1, seed=1).expand(150, -1)])
    found = neighbourhood(x, 10)
    threshold = duplicate_threshold(found.distances[:, 0], 0.3)
    alone = neighbourhood(x[:101], 10)
    assert threshold == duplicate_threshold(alone.distances[:100, 0], 0.3)
    groups = duplicate_groups(found, threshold)
    assert (groups[:100] == -1).all()
    assert (groups[100:] == 0).all()


def test_an_outlier_is_beyond_the_median_by_robust_deviations():
    scores = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 40])
    outlying, threshold = robust_outliers(scores, 3.0)
    assert threshold == 5.5 + 3 * 1.4826 * 2.5
    assert outlying.tolist() == [False] * 9 + [True]


def test_copies_are_those_of_brute_force():
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(40, 4, 4, 3, generator=rng)
    second = 0.99 * first + 0.15 * torch.randn(40, 4, 4, 3, generator=rng)  # cosines about 0.98
    second[20:] = second[20:].flip(2)
    unit = [x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (first, second)]
    cosines = [torch.einsum("nhwc,mhwc->nm", unit[1].double(), x.double()) for x in (unit[0], unit[0].flip(2))]
    expected = (torch.maximum(*cosines) >= ALIKE).nonzero().tolist()
    assert 20 < len(expected) < 60
    assert sorted(copies(unit[0], unit[1]).tolist()) == expected
    everything = torch.cat([*unit, torch.zeros(2, 4, 4, 3)])
    found = {tuple(sorted(pair)) for pair in copies(everything).tolist()}
    assert found == {(i, 40 + j) for j, i in expected}
