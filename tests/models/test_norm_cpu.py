"""Batch norm on a CPU: float32 accuracy for channels-last tensors, the same bits for any number of threads."""

import pytest
import torch
from support.processes import in_processes
from torch import nn

from simclr.models.norm import BatchNorm2d, SyncBatchNorm, replace_norms

SHAPES = [(64, 16, 9, 9), (3, 5, 2, 2), (1, 4, 3, 3), (40, 3, 20, 20)]


def inputs(shape, offset=30.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + offset * torch.randn(1, shape[1], 1, 1, generator=generator)
    gradient = torch.randn(shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), gradient


def norms(channels, **settings):
    torch.manual_seed(1)
    norm = BatchNorm2d(channels, **settings)
    nn.init.normal_(norm.weight)
    exact = BatchNorm2d(channels, **settings).double()
    exact.load_state_dict(norm.state_dict())
    return SyncBatchNorm(norm), exact


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_gradients_and_statistics_have_float32_accuracy(shape, center):
    norm, exact = norms(shape[1], center=center)
    x, gradient = inputs(shape)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    y, z = norm(a), exact(b)
    y.backward(gradient)
    z.backward(gradient.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    pairs = [(y, z), (a.grad, b.grad), (norm.running_mean, exact.running_mean), (norm.running_var, exact.running_var)]
    pairs += zip((p.grad for p in norm.parameters()), (p.grad for p in exact.parameters()), strict=True)
    for value, true in pairs:
        assert (value.double() - true).abs().max() <= 2e-6 * true.abs().max()


def test_the_bits_do_not_depend_on_the_number_of_threads():
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        norm, _ = norms(16)
        x, gradient = inputs((64, 16, 17, 17))
        x.requires_grad_()
        y = norm(x)
        y.backward(gradient)
        results.append((y.detach(), x.grad, norm.weight.grad, norm.running_var))
    torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(value, other) for value, other in zip(results[0], others, strict=True))


def test_a_value_that_is_not_finite_is_not_hidden():
    norm, _ = norms(4)
    x, _ = inputs((2, 4, 3, 3))
    x[0, 1, 0, 0] = torch.nan
    y = norm(x)
    assert y[:, 1].isnan().all() and y[:, [0, 2, 3]].isfinite().all()


def stack():
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(3, 8, 3, bias=False),
        BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        BatchNorm2d(8),
        nn.Flatten(),
    ]
    return replace_norms(nn.Sequential(*layers).to(memory_format=torch.channels_last))


def part_of(rank, world):
    """Loss and gradients of this process's images of a batch of 12."""
    module, (x, _) = stack(), inputs((12, 3, 8, 8), offset=3.0)
    loss = module(x[rank::world].contiguous(memory_format=torch.channels_last)).square().cos().sum()
    loss.backward()
    state = {name: value for name, value in module.state_dict().items() if "running" in name}
    return {"loss": loss.detach(), "gradients": [p.grad for p in module.parameters()], "state": state}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_compute_what_one_does_in_float32(world):
    whole, results = part_of(0, 1), in_processes(part_of, world=world)
    torch.testing.assert_close(sum(r["loss"] for r in results), whole["loss"], rtol=1e-6, atol=0)
    for gradients in zip(whole["gradients"], *(r["gradients"] for r in results), strict=True):
        torch.testing.assert_close(sum(gradients[1:]), gradients[0], rtol=1e-4, atol=2e-4 * gradients[0].abs().max())
    for result in results:
        for name, value in result["state"].items():
            torch.testing.assert_close(value, whole["state"][name], rtol=1e-6, atol=1e-6)


def test_bfloat16_is_normalised_in_float32_and_rounded_once():
    x, gradient = inputs((16, 8, 6, 6), offset=3.0)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        norm = SyncBatchNorm(BatchNorm2d(8))
        rounded = x.bfloat16().to(dtype).requires_grad_()
        y = norm(rounded)
        y.backward(gradient.bfloat16().to(dtype))
        assert (y.dtype, rounded.grad.dtype) == (dtype, dtype)
        results.append((y.detach().bfloat16(), rounded.grad.bfloat16(), norm.running_mean, norm.running_var))
    for half, single in zip(*results, strict=True):
        assert torch.equal(half, single)
