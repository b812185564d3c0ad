"""Gradient caching: micro-batches give the gradient of the whole batch and leave buffers as one step would."""

import copy

import pytest
import torch
from lightning_fabric import Fabric
from support.processes import in_processes
from torch import nn

from simclr.errors import SettingError
from simclr.losses import Keys, nt_xent
from simclr.models import ProjectionHead, resnet
from simclr.randomness import bits
from simclr.tasks.pretrain import EncoderWithHead
from simclr.training.gathering import gather
from simclr.training.gradcache import MicroBatches, cached_backward
from simclr.training.recompute import recompute_blocks

pytestmark = pytest.mark.slow

IMAGES, NAME = 12, (3, 5, 0)


def perceptron(dropout):
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.ReLU()
    )
    return EncoderWithHead(encoder, nn.Linear(32, 8))


def convolutions(dropout=0.0):
    torch.manual_seed(0)
    encoder = resnet(10, width=0.125, image_size=16)
    encoder.layer2.append(nn.Dropout2d(dropout))
    for norm in encoder.modules():  # else every residual branch starts at zero
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.1)
    return EncoderWithHead(encoder, ProjectionHead(encoder.num_features, 8, 2))


def views(side=4):
    return torch.rand(2, IMAGES, 3, side, side, generator=torch.Generator().manual_seed(1))


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def by_parts(network, micro, x=None, bn="micro", loss=nt_xent):
    fabric = Fabric(accelerator="cpu", devices=1)
    x = views() if x is None else x
    return cached_backward(fabric, fabric.setup_module(network), [x], loss, MicroBatches(micro, bn, NAME))


def close(one, other, tolerance=1e-5):
    assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("micro", [1, 3, 4, 12])
def test_the_gradient_is_that_of_the_whole_batch(micro):
    network, whole = perceptron(0.0), perceptron(0.0)
    loss, h, z = by_parts(network, micro)
    h_whole, z_whole = whole(views().flatten(0, 1))
    expected = nt_xent(*z_whole.chunk(2))
    expected.backward()
    close(gradients(network), gradients(whole))
    close(loss, expected)
    close(h, h_whole)
    close(z, z_whole)


def test_accumulated_gradients_of_small_losses_are_another_objective():
    network, whole = perceptron(0.0), perceptron(0.0)
    by_parts(whole, IMAGES)
    for part in views().split(3, dim=1):
        (nt_xent(*network(part.flatten(0, 1))[1].chunk(2)) / 4).backward()
    assert nn.functional.cosine_similarity(gradients(network), gradients(whole), dim=0) < 0.99


def test_dropout_draws_the_same_in_both_passes():
    network, whole = perceptron(0.5), perceptron(0.5)
    by_parts(network, 3)
    z = []
    for i, part in enumerate(views().split(3, dim=1)):
        torch.manual_seed(int(bits(*NAME, i)[0] >> 1))
        z.append(whole(part.flatten(0, 1))[1].unflatten(0, (2, 3)))
    nt_xent(*torch.cat(z, dim=1)).backward()
    close(gradients(network), gradients(whole))
    assert not torch.equal(z[0], z[1])


@pytest.mark.parametrize("micro", [1, 4])
def test_batch_norms_with_moving_statistics_have_the_gradient_of_the_whole_batch(micro):
    network, whole, x = convolutions(), convolutions(), views(16)
    for both in zip(network.buffers(), whole.buffers(), strict=True):
        if both[0].is_floating_point():  # a number whose twelvefold is rounded
            for buffer in both:
                buffer.fill_(0.7)
    before = copy.deepcopy(dict(network.named_buffers()))
    by_parts(network, micro, x, bn="frozen-stats")
    for module in whole.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    nt_xent(*whole(x.flatten(0, 1))[1].chunk(2)).backward()
    close(gradients(network), gradients(whole))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert all(module.training for module in network.modules())


def test_batch_norms_move_once_in_a_step_to_the_mean_over_the_micro_batches():
    network, x = convolutions(), views(16)
    alone = []
    for part in x.split(4, dim=1):
        one = convolutions()
        one(part.flatten(0, 1))
        alone.append(dict(one.named_buffers()))
    by_parts(network, 4, x)
    for name, value in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert value == 1
        else:
            torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean(0))


def test_a_single_micro_batch_is_an_ordinary_step():
    network, whole, x = convolutions(), convolutions(), views(16)
    by_parts(network, IMAGES, x)
    nt_xent(*whole(x.flatten(0, 1))[1].chunk(2)).backward()
    close(gradients(network), gradients(whole))
    for value, expected in zip(network.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(value, expected)


def test_micro_batches_must_have_one_size():
    with pytest.raises(SettingError) as error:
        by_parts(perceptron(0.0), 5)
    assert error.value.field == "micro_batch"


def share(rank, world):
    """The gradient of this process's half of the batch, against the keys of all."""
    network, mine = perceptron(0.0), views().chunk(world, dim=1)[rank]

    def loss(z_a, z_b):
        return nt_xent(z_a, z_b, keys=Keys(gather(z_a), gather(z_b), rank * len(z_a)))

    by_parts(network, 2, mine, loss=loss)
    return gradients(network)


def test_two_processes_have_the_gradient_of_one():
    network = perceptron(0.0)
    by_parts(network, IMAGES)
    close(torch.stack(in_processes(share)).mean(0), gradients(network))


def test_recomputed_blocks_give_the_same_gradients_in_less_memory():
    plain, recomputed, x = convolutions(0.3), recompute_blocks(convolutions(0.3)), views(16).flatten(0, 1)
    kept = []
    for network in (plain, recomputed):
        sizes = []
        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            _, z = network(x)
        kept.append(sum(sizes))
        nt_xent(*z.chunk(2)).backward()
    assert kept[1] < kept[0] / 2
    close(gradients(recomputed), gradients(plain))
    for value, expected in zip(recomputed.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_the_layers_of_a_stem_are_not_recomputed():
    network = resnet(50, width=0.125, sk_ratio=0.0625, image_size=64)
    recompute_blocks(network)
    again = {name for name, module in network.named_modules() if "forward" in vars(module)}
    assert again == {f"layer{group}.{k}" for group, count in enumerate((3, 4, 6, 3), 1) for k in range(count)}
