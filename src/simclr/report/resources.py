"""Estimates of the memory, time and disk space of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from simclr.report.checks import Finding


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list to which the sizes in bytes of tensors kept by autograd are appended, without the parameters of
    `model` and their copies of half precision."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {shape for p in model.parameters() for shape in (p.shape, p.shape[::-1])}
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        is_copy = x.dtype in (torch.bfloat16, torch.float16) and x.shape in shapes
        if storage.data_ptr() not in seen and not is_copy:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


def bytes_of(model: nn.Module) -> int:
    """Return the size of parameters and buffers, bytes."""
    return sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


def check_memory(needed: float | int, free: float, batch: int, fitting: int, device: str) -> Finding:
    """Check the memory of a step against the free memory, bytes; `fitting` is the largest batch that fits."""
    text = f"a step of {batch:,} needs about {needed / 1e9:.2g} GB of the {free / 1e9:.3g} GB free on {device}"
    if needed > free:
        text += f"; about {fitting:,} fit: lower batch, or set micro_batch or machine.recompute"
        return Finding("memory", "FAILED", text)
    return Finding("memory", "warning" if needed > 0.9 * free else "ok", text)


def check_duration(steps: int, batch: int, rate: float, wait: float, measured: int) -> Finding:
    """Check the duration of a run from its throughput, images/s, measured with batches of `measured`; `wait` is the
    fraction of the time spent waiting for data."""
    seconds = steps * batch / rate
    text = f"about {rough_duration(seconds)} at {rate:,.3g} images/s"
    text += f", measured at a batch of {measured:,}" if measured != batch else ""
    text += f", {wait:.0%} of it waiting for data" + (": simclr bench says what to change" if wait > 0.1 else "")
    return Finding("duration", "warning" if seconds > 14 * 86400 else "ok", text)


def rough_duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} seconds"


def check_disk(needed: float | int, free: float | int, folder: str) -> Finding:
    """Check the disk space of checkpoints and weights against the free space, bytes."""
    text = f"checkpoints and weights take {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free for {folder}"
    return Finding("disk", "FAILED" if needed > free else "ok", text)
