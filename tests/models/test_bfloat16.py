"""Convolutions in bfloat16 on a CPU."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simclr.errors import SettingError
from simclr.models.bfloat16 import is_wrong, refuse_wrong_convolutions
from simclr.runs.environment import cpu_computes_bf16


@pytest.mark.skipif(not cpu_computes_bf16(), reason="the CPU does not compute bfloat16 in hardware")
@pytest.mark.parametrize(("stride", "padded"), [(s, p) for s in (1, 2, 4) for p in (True, False)])
def test_what_is_not_refused_is_what_float32_computes(stride, padded):
    generator = torch.Generator().manual_seed(stride)
    refused = 0
    for kernel, side, channels, outputs in itertools.product((1, 3, 4, 5, 7), range(1, 9), (3, 8, 16, 64), (8, 32)):
        padding = kernel // 2 if padded else 0
        if side + 2 * padding < kernel:
            continue
        if kernel > 1 and is_wrong(2 * [(side, kernel, stride, padding, 1)]):
            refused += 1
            continue
        x = torch.randn(4, channels, side, side, generator=generator)
        weight = torch.randn(outputs, channels, kernel, kernel, generator=generator) / kernel
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            a, w = (t.bfloat16().to(dtype, memory_format=torch.channels_last).requires_grad_() for t in (x, weight))
            y = F.conv2d(a, w, stride=stride, padding=padding)
            gradient = torch.linspace(-1, 1, y.numel()).view(y.shape).bfloat16().to(dtype)
            y.backward(gradient.to(memory_format=torch.channels_last))
            results.append([t.detach().float() for t in (y, a.grad, w.grad)])
        for half, single in zip(*results, strict=True):
            assert (half - single).abs().max() <= 0.02 * single.abs().max() + 1e-6, (kernel, side, channels, outputs)
    assert refused


def test_a_convolution_of_padding_alone_is_refused_in_bfloat16_only():
    layer = refuse_wrong_convolutions(nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1)))
    small = torch.rand(2, 8, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.rand(2, 8, 3, 3))
        with pytest.raises(SettingError) as refused:
            layer(small)
        with pytest.raises(SettingError):
            refuse_wrong_convolutions(nn.Sequential(nn.Conv2d(8, 8, 3, padding="same")))(small)
    assert refused.value.field == "machine.precision"
    layer(small)
    assert is_wrong([(4, 3, 1, 1, 1), (1, 3, 1, 1, 1)])  # one side is enough
    assert not is_wrong([(16, 16, 16, 0, 1), (32, 16, 16, 0, 1)])
