"""Gathering over processes: embeddings with exact gradients, dictionaries, and agreement."""

import re

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from lightning_fabric import Fabric
from torch import Tensor

from simclr.runs.environment import has_processes

SHARED_FOLDER = "The folder must lie on storage that all nodes share"


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass sums gradients over processes, since every process's loss depends on all rows.

    Returning only the local slice of the gradient, as several public implementations do, leaves the loss as it is and
    scales or rotates the gradient.
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
    """Return the rows of all processes in the order of their ranks; every process must hold the same number."""
    if not has_processes():
        return z
    return _Gather.apply(z.contiguous()).flatten(0, 1)


def gather_entries(mine: dict[str, str]) -> dict[str, str]:
    """Return the entries of all processes in one dictionary."""
    if not has_processes():
        return mine
    parts: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return {name: value for part in parts for name, value in part.items()}


def is_same_on_all_ranks(fabric: Fabric, value: int | bool) -> bool:
    """Return whether `value` is the same on every process."""
    differs = torch.tensor(float(fabric.broadcast(value) != value), device=fabric.device)
    return not fabric.all_reduce(differs, reduce_op="sum").item()


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error of torch says that another process has ended: gloo raises a RuntimeError for it."""
    return isinstance(error, RuntimeError) and bool(re.search(r"gloo|nccl|\bpeer\b", str(error), re.IGNORECASE))
