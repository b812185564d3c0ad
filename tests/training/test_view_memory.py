"""Memory of views: groups by policy cover the groups by size, and views are computed at once on a GPU alone."""

import torch

from simclr.training.view_memory import at_once, channels_first, empty_views, of_policies
from simclr.views import Views

LARGE, SMALL = Views(size=8), Views(size=4)
POLICIES = (LARGE, LARGE, Views(size=8, grey=1.0), SMALL, SMALL)


def test_groups_by_policy_are_the_memory_by_size_in_order():
    memory = empty_views(POLICIES, 3, 2, torch.device("cpu"))
    assert [tuple(group.shape) for group in memory] == [(3, 3, 8, 8, 2), (2, 3, 4, 4, 2)]
    groups = list(of_policies(memory, POLICIES))
    assert [len(group) for group in groups] == [6, 3, 6]
    for number, group in enumerate(groups):
        group.fill_(number)
    assert memory[0].flatten(1)[:, 0].tolist() == [0, 0, 1] and (memory[1] == 2).all()
    assert [tuple(group.shape) for group in channels_first(memory)] == [(3, 3, 2, 8, 8), (2, 3, 2, 4, 4)]


def test_views_are_computed_one_by_one_on_a_cpu_and_at_once_elsewhere():
    assert list(at_once(3, torch.empty(12, 4, 4, 3))) == [(1, slice(k, k + 4)) for k in (0, 4, 8)]
    assert list(at_once(3, torch.empty(12, 4, 4, 3, device="meta"))) == [(3, slice(0, 12))]
