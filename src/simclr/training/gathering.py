"""Embeddings of all processes, with exact gradients, and what goes with them."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Every process's loss depends on every process's rows, so a row's gradient is summed over the processes.

    Returning only one's own slice, as several public implementations do, leaves the loss as it is and scales or
    turns the gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def gather(z: Shaped[Tensor, "n *rest"]) -> Shaped[Tensor, "m *rest"]:
    """Rows of all processes in the order of their ranks; every process must hold the same number."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return z
    return _Gather.apply(z.contiguous()).flatten(0, 1)


def gather_entries(mine: dict[str, str]) -> dict[str, str]:
    """Entries of all processes in one dictionary."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return mine
    parts: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return {name: value for part in parts for name, value in part.items()}
