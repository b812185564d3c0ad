"""Several processes against one on the same batch: the loss alone would not show a wrong gradient."""

import pytest
import torch
import torch.distributed as dist
from support.processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simclr.losses import Keys, nt_xent
from simclr.training.gathering import gather, gather_entries, is_lost_peer

pytestmark = pytest.mark.slow

TEMPERATURE = 0.2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)).double()


def images(n):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, n, 12, generator=generator, dtype=torch.float64)


def share(rank, world, n, block):
    model = DistributedDataParallel(network())
    x = images(n)[:, rank * n // world : (rank + 1) * n // world]
    z_a, z_b = model(x.flatten(0, 1)).chunk(2)
    keys = Keys(gather(z_a), gather(z_b), rank * len(z_a))
    loss = nt_xent(z_a, z_b, TEMPERATURE, keys=keys, block=block)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize(("world", "n", "block"), [(2, 8, 0), (2, 8, 3), (4, 16, 0), (4, 4, 0)])
def test_every_gradient_is_that_of_one_process(world, n, block):
    model = network()
    z_a, z_b = model(images(n).flatten(0, 1)).chunk(2)
    whole = nt_xent(z_a, z_b, TEMPERATURE, block=0)
    whole.backward()

    results = in_processes(share, n, block, world=world)
    torch.testing.assert_close(torch.stack([loss for loss, _ in results]).mean(), whole.detach())
    for _, gradients in results:
        for ours, expected in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(ours, expected.grad, rtol=1e-6, atol=1e-12)


def test_one_process_gathers_its_own_rows():
    z = torch.randn(3, 2)
    assert gather(z) is z


def entries(rank, world):
    return gather_entries({f"{rank}.jpg": "broken", "both.jpg": "empty"})


def test_entries_of_all_processes_are_known_to_each():
    assert entries(0, 1) == {"0.jpg": "broken", "both.jpg": "empty"}
    everything = {"0.jpg": "broken", "1.jpg": "broken", "both.jpg": "empty"}
    assert in_processes(entries) == [everything, everything]


def alone(rank, world):
    if rank:
        return False  # this process ends
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        return is_lost_peer(error)
    return False


def test_a_process_that_ends_is_noticed_as_such_by_the_others():
    assert in_processes(alone) == [True, False]
    assert not is_lost_peer(RuntimeError("shapes differ")) and not is_lost_peer(ValueError("gloo"))
