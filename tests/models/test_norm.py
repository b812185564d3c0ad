"""Batch norms: official statistics, and the statistics of all processes."""

import pytest
import torch
from support.processes import in_processes
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.models.norm import BatchNorm1d, BatchNorm2d, SyncBatchNorm, synchronise

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("ours", "torchs", "shape"), [(BatchNorm2d, nn.BatchNorm2d, (5, 4, 3, 2)),
                                                       (BatchNorm1d, nn.BatchNorm1d, (6, 4))])  # fmt: skip
def test_output_and_gradient_are_torchs_and_the_moving_variance_is_the_biased_one(ours, torchs, shape):
    torch.manual_seed(0)
    a, b = ours(4).double(), torchs(4).double()
    for tensor in (*a.parameters(), a.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(a.running_var, 0.5, 2)
    b.load_state_dict(a.state_dict())
    mean, var = a.running_mean.clone(), a.running_var.clone()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out_a, out_b = a(x), b(y)
    torch.testing.assert_close(out_a, out_b)
    (out_a**3).sum().backward()
    (out_b**3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(a.weight.grad, b.weight.grad)

    dims = [d for d in range(len(shape)) if d != 1]
    torch.testing.assert_close(a.running_mean, 0.9 * mean + 0.1 * x.mean(dims))
    torch.testing.assert_close(a.running_var, 0.9 * var + 0.1 * x.var(dims, correction=0))
    assert a.num_batches_tracked == 1
    assert isinstance(a, _BatchNorm)
    torch.testing.assert_close(a.eval()(x), eval_formula(a, x))


def eval_formula(norm, x):
    view = [1, -1] + [1] * (x.dim() - 2)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(view)) * scale.view(view) + norm.bias.view(view)


def test_two_forward_passes_before_one_backward_pass():
    norm = BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (norm(x).square() + norm(2 * x).square()).sum().backward()
    assert norm.num_batches_tracked == 2


def test_without_processes_nothing_is_converted():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm2d(4))
    assert synchronise(module) is module
    assert type(module[1]) is BatchNorm2d


def network(own):
    torch.manual_seed(1)
    norms = (BatchNorm2d(4), BatchNorm2d(4), BatchNorm1d(4, center=False)) if own else (
        nn.BatchNorm2d(4), BatchNormAct2d(4), nn.BatchNorm1d(4, momentum=None))  # fmt: skip
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), norms[0], nn.Conv2d(4, 4, 3), norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        norms[2], nn.Linear(4, 2),
    )  # fmt: skip
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(7, 3, 8, 8, generator=generator, dtype=torch.float64)


def loss_of(module, x, indices):
    """Depends on each example differently, so that gradients through shared statistics show."""
    weight = torch.cos(torch.arange(14, dtype=torch.float64)).view(7, 2)[indices]
    return (module(x[indices]) ** 2 * weight).sum()


def parts(rank, world):
    """Unequal shares: 4 images on the first process, 3 on the second."""
    results = []
    for own in (True, False):
        module = network(own)
        names = set(module.state_dict())
        module = synchronise(module)
        assert set(module.state_dict()) == names
        assert sum(isinstance(m, SyncBatchNorm) for m in module.modules()) == 3
        x = batch()
        loss = loss_of(module, x, slice(0, 4) if rank == 0 else slice(4, 7))
        loss.backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        state = dict(module.state_dict())
        with torch.no_grad():
            evaluated = module.eval()(x)
        results.append({"loss": loss.detach(), "gradients": gradients, "state": state, "evaluated": evaluated})
    half = SyncBatchNorm(BatchNorm2d(3))
    results.append({"half": half(100 + x[rank::2].bfloat16()), "mean": half.running_mean})
    return results


def test_two_processes_are_one():
    results = in_processes(parts)
    for rank, result in enumerate(results):
        whole = BatchNorm2d(3)
        y = whole((100 + batch().bfloat16())[[0, 2, 4, 6, 1, 3, 5]].float())
        mine = y[:4] if rank == 0 else y[4:]
        assert result[2]["half"].dtype == torch.bfloat16
        torch.testing.assert_close(result[2]["half"].float(), mine, atol=0.01, rtol=0.01)
        torch.testing.assert_close(result[2]["mean"], whole.running_mean)
    for i, own in enumerate((True, False)):
        module, x = network(own), batch()
        loss = loss_of(module, x, slice(0, 7))
        loss.backward()
        torch.testing.assert_close(sum(r[i]["loss"] for r in results), loss.detach())
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(sum(r[i]["gradients"][name] for r in results), parameter.grad)
        for result in results:
            torch.testing.assert_close(result[i]["state"], dict(module.state_dict()))
        with torch.no_grad():
            torch.testing.assert_close(results[0][i]["evaluated"], module.eval()(x))
