"""Convolutions that torch computes wrongly in bfloat16 on a CPU."""

import torch
from torch import Tensor, nn

from simclr.errors import SettingError

REMEDY = "Views may be larger instead: torch computes convolutions of small feature maps wrongly in bfloat16"


def refuse_wrong_convolutions(module: nn.Module) -> nn.Module:
    """Let the convolutions of `module` raise SettingError for inputs that torch 2.14 computes wrongly in bfloat16 on a
    CPU with AVX-512 BF16: the gradient of weights that meet nothing but padding is not set, and kernels as large as
    their input give other outputs than in float32."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d) and max(each.kernel_size) > 1:
            each.register_forward_pre_hook(_check)
    return module


def _check(layer: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
    if not torch.is_autocast_enabled("cpu"):
        return
    padding = layer.padding
    if isinstance(padding, str):  # valid or same
        taps = zip(layer.kernel_size, layer.dilation, strict=True)
        padding = tuple(dilation * (kernel - 1) // 2 if padding == "same" else 0 for kernel, dilation in taps)
    sides = zip(inputs[0].shape[-2:], layer.kernel_size, layer.stride, padding, layer.dilation, strict=True)
    if is_wrong(list(sides)):
        raise SettingError("machine.precision", "32 for this network and size of views on a CPU", "bf16", REMEDY)


def is_wrong(sides: list[tuple[int, int, int, int, int]]) -> bool:
    """Return whether bfloat16 on a CPU is wrong for a convolution; `sides` has input, kernel, stride, padding and
    dilation for height and width."""
    return any(map(_has_idle_weights, sides)) or all(n == kernel and not padding for n, kernel, _, padding, _ in sides)


def _has_idle_weights(side: tuple[int, int, int, int, int]) -> bool:
    """Return whether a weight is multiplied with padding only."""
    n, kernel, stride, padding, dilation = side
    outputs = (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    first = [tap * dilation - padding for tap in range(kernel)]
    return any(all(not 0 <= start + k * stride < n for k in range(outputs)) for start in first)
