"""Batch normalisation of the official code, in one process or over all processes.

The official layers update the moving variance with the *biased* batch variance, where torch uses the
unbiased one; everything else (decay 0.9, ε = 1e-5) is torch's default.
"""

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.models import norm_cpu
from simclr.runs.environment import has_processes


class _BiasedBatchNorm(_BatchNorm):
    """Batch norm whose moving variance follows the biased batch variance; `center=False` has no offset β."""

    def __init__(self, num_features: int, *, center: bool = True):
        super().__init__(num_features, eps=1e-5, momentum=0.1)
        if not center:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        self.num_batches_tracked.add_(1)
        # the scratch buffer, never changed in place afterwards, is what autograd keeps for the backward pass
        scaled_variance = torch.zeros_like(self.running_var)
        y = F.batch_norm(x, self.running_mean, scaled_variance, self.weight, self.bias, True, self.momentum, self.eps)
        n = x.numel() // x.shape[1]
        self.running_var.mul_(1 - self.momentum).add_(scaled_variance, alpha=(n - 1) / n)
        return y


class BatchNorm1d(_BiasedBatchNorm, nn.BatchNorm1d):
    """Official batch normalisation of (B, C)."""


class BatchNorm2d(_BiasedBatchNorm, nn.BatchNorm2d):
    """Official batch normalisation of (B, C, H, W)."""


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes, differentiable: every process's result depends on every process's input."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _sum_over_processes(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _sum_over_processes(gradient)


def _sum_over_processes(x: Tensor) -> Tensor:
    total = x.clone()
    if has_processes():
        dist.all_reduce(total)
    return total


class _NormaliseOnCpu(torch.autograd.Function):
    """Batch normalisation by the kernels of `norm_cpu`, with the statistics of all processes in float64.

    Returns the output, mean, variance and number of positions; gradients flow through the output alone.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = norm_cpu.moments(x)
        n, first, second = _sum_arrays(np.array([x.numel() // x.shape[1]], np.float64), first, second)
        mean = first / n
        variance = np.maximum(second / n - mean**2, 0)  # float64 has digits to spare for the difference
        inverse = 1 / np.sqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight.detach().numpy()
        y = norm_cpu.normalise(x, mean, scale, np.zeros_like(mean) if bias is None else bias.detach().numpy())
        ctx.save_for_backward(x, weight)
        ctx.statistics = mean, inverse, scale, n
        ctx.has_bias = bias is not None
        statistics = [torch.from_numpy(array) for array in (mean, variance, n)]
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        mean, inverse, scale, n = ctx.statistics
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        offset, slope = norm_cpu.gradient_moments(gradient, x, mean)
        all_offset, all_slope = _sum_arrays(offset, slope)
        factors = np.stack([scale, scale * all_offset / n, scale * inverse**2 * all_slope / n])
        dx = norm_cpu.input_gradient(gradient, x, mean, factors)
        dw = None if weight is None else torch.from_numpy(slope * inverse).to(weight.dtype)
        return dx, dw, torch.from_numpy(offset).float() if ctx.has_bias else None, None


def _sum_arrays(*arrays: Float[np.ndarray, " _"]) -> list[Float[np.ndarray, " _"]]:
    """Return the sums over all processes of arrays, added in one message."""
    if not has_processes():
        return list(arrays)
    total = torch.from_numpy(np.concatenate(arrays))
    dist.all_reduce(total)
    return np.split(total.numpy(), np.cumsum([len(array) for array in arrays])[:-1])


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of all processes, on any device.

    Takes over parameters, buffers and settings of `norm`, including timm's fused activation. On CUDA the
    kernels are torch's; elsewhere the sums go through a differentiable all-reduce. It is no subclass of
    nn.SyncBatchNorm, since DistributedDataParallel refuses that class on a CPU.
    """

    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def __init__(self, norm: _BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.biased = isinstance(norm, _BiasedBatchNorm)
        for name, parameter in norm.named_parameters(recurse=False):
            setattr(self, name, parameter)
        if norm.bias is None:
            self.register_parameter("bias", None)
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        for name, child in norm.named_children():  # dropout and activation of timm's BatchNormAct2d
            self.add_module(name, child)
        self.train(norm.training)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        use_batch = self.training or self.running_mean is None
        if not use_batch:
            y = super().forward(x)
        elif x.is_cuda:
            y = self._cuda(x)
        elif norm_cpu.applies(x):
            y = self._on_cpu(x.float()).to(x.dtype)
        else:
            y = self._reduced(x)
        for child in self.children():
            y = child(y)
        return y

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch normalisation needs (B, C, ...), got {tuple(x.shape)}")

    def _cuda(self, x: Tensor) -> Tensor:
        before = self.running_var.clone() if self.biased else None
        y = nn.SyncBatchNorm.forward(self, x)
        if before is not None:
            # (1-m)·before + m·unbiased -> (1-m)·before + m·biased; processes hold batches of one size
            n = x.numel() // x.shape[1] * dist.get_world_size()
            self.running_var.mul_(1 - 1 / n).add_(before, alpha=(1 - self.momentum) / n)
        return y

    @torch.compiler.disable
    def _on_cpu(self, x: Tensor) -> Tensor:
        y, mean, variance, n = _NormaliseOnCpu.apply(x, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats:
            self._update(mean, variance, n)
        return y

    def _reduced(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # sums of half-precision numbers need more
        count = wide.new_full((1,), x.numel() // x.shape[1])
        sums = _SumOverProcesses.apply(torch.cat([wide.sum(dims), count]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        centred = wide - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / n
        if self.training and self.track_running_stats:
            self._update(mean.detach(), variance.detach(), n)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * scale.view(shape)
        return (y if self.bias is None else y + self.bias.view(shape)).to(x.dtype)

    def _update(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        target = variance if self.biased else variance * (n / (n - 1))
        self.running_var.lerp_(target.to(self.running_var), rate)


def synchronise(module: nn.Module) -> nn.Module:
    """Let every batch norm of `module` use the statistics of all processes; with one process, change nothing."""
    return replace_norms(module) if has_processes() else module


def replace_norms(module: nn.Module) -> nn.Module:
    """Replace every batch norm of `module` by `SyncBatchNorm`, which with one process too has the exact kernels of
    `norm_cpu`, so that any number of processes computes the same.

    Parameters, buffers and their names stay, so optimisers and checkpoints do not change. Returns the module, which is
    new only if it is itself a batch norm.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        return SyncBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, replace_norms(child))
    return module
