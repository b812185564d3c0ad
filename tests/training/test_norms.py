"""Batch norms of one process each, with the images shuffled over the processes or not, against one process."""

import copy

import pytest
import torch
from support.processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simclr.losses import Keys, nt_xent
from simclr.models import ProjectionHead
from simclr.models.head import EncoderWithHead
from simclr.models.norm import BatchNorm2d
from simclr.training.gathering import gather
from simclr.training.norms import Shuffle, average_buffers

pytestmark = pytest.mark.slow

WORLD, LOCAL, SEED, STEP = 2, 6, 3, 5


def network():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return EncoderWithHead(encoder, ProjectionHead(6, 4, 2)).double()


def views():
    """Two views of all images: (2, images, 3, 5, 5)."""
    return torch.randn(2, WORLD * LOCAL, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def share(rank, world, shuffled):
    inner = network()
    shuffle = Shuffle(SEED, [inner] if shuffled else [])
    shuffle.step = STEP
    model = DistributedDataParallel(inner, broadcast_buffers=False)
    _, z = model(views()[:, rank * LOCAL :][:, :LOCAL].flatten(0, 1))
    z_a, z_b = z.chunk(2)
    loss = nt_xent(z_a, z_b, 0.2, keys=Keys(gather(z_a), gather(z_b), rank * LOCAL))
    loss.backward()
    average_buffers(inner)
    return [p.grad for p in inner.parameters()], list(inner.buffers())


@pytest.mark.parametrize("shuffled", [False, True])
def test_gradients_and_moving_statistics_are_those_of_separate_groups(shuffled):
    whole = network()
    rows = torch.cat([views()[:, k * LOCAL :][:, :LOCAL].flatten(0, 1) for k in range(WORLD)])  # as they are gathered
    shuffle = Shuffle(SEED, [])
    shuffle.step = STEP
    order = shuffle.order(len(rows), 0, 0) if shuffled else torch.arange(len(rows))
    groups = [copy.deepcopy(whole) for _ in range(WORLD)]
    z = torch.cat([group(part)[1] for group, part in zip(groups, rows[order].chunk(WORLD), strict=True)])
    z_a, z_b = z[order.argsort()].unflatten(0, (WORLD, 2, LOCAL)).transpose(0, 1).flatten(1, 2)
    nt_xent(z_a, z_b, 0.2).backward()
    gradients = [
        torch.stack([p.grad for p in same]).sum(0) for same in zip(*(g.parameters() for g in groups), strict=True)
    ]
    buffers = [torch.stack(same).double().mean(0) for same in zip(*(g.buffers() for g in groups), strict=True)]
    for process in in_processes(share, shuffled, world=WORLD):
        for ours, expected in zip(process, (gradients, buffers), strict=True):
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-9, atol=1e-12)


def test_each_step_and_network_has_an_order_of_its_own():
    orders = []
    for step, number, size in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        shuffle = Shuffle(SEED, [])
        shuffle.step = step
        orders.append(tuple(shuffle.order(24, number, size).tolist()))
        assert sorted(orders[-1]) == list(range(24))
    assert len(set(orders)) == 4
