"""What a run needs of memory, time and disk, and what there is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from simclr.report.checks import Finding

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def total_memory(device: torch.device) -> float:
    """Bytes of a GPU, or of the memory that this machine or container has."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for limit in map(Path, LIMITS):
        with suppress(OSError, ValueError):  # no such limit, or "max"
            found.append(float(limit.read_text()))
    return min(found)


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had: of a GPU with what this process only keeps for itself; elsewhere what the system
    says is available, within the limit of a container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    free = total_memory(device)
    with suppress(OSError, StopIteration):  # Linux alone tells
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = min(free, 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    return free


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[list[int]]:
    """A list of the sizes in bytes of what autograd keeps of a forward pass, without the parameters of `model`."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


def bytes_of(model: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(x.nbytes for x in (*model.parameters(), *model.buffers()))


def memory(needed: float | int, there: float, batch: int, fitting: int, device: str) -> Finding:
    """Bytes that a step needs and that the device has; `fitting` is the largest share of the batch with room."""
    text = f"a step of {batch:,} needs about {needed / 1e9:.2g} GB of the {there / 1e9:.3g} GB free on {device}"
    if needed > there:
        text += f"; about {fitting:,} fit: lower batch, or set micro_batch or machine.recompute"
        return Finding("memory", "FAILED", text)
    return Finding("memory", "warning" if needed > 0.9 * there else "ok", text)


def duration(steps: int, batch: int, rate: float, wait: float, measured: int) -> Finding:
    """`rate` in images a second, over batches of `measured`; `wait` is the share of time without data."""
    seconds = steps * batch / rate
    text = f"about {in_words(seconds)} at {rate:,.3g} images/s"
    text += f", measured at a batch of {measured:,}" if measured != batch else ""
    text += f", {wait:.0%} of it waiting for data" + (": simclr bench says what to change" if wait > 0.1 else "")
    return Finding("duration", "warning" if seconds > 14 * 86400 else "ok", text)


def in_words(seconds: float) -> str:
    """A duration in its largest unit."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} seconds"


def disk(needed: float | int, free: float | int, folder: str) -> Finding:
    """Bytes of a run's checkpoints and weights, and those free where they go."""
    text = f"checkpoints and weights take {needed / 1e6:,.0f} MB of {free / 1e6:,.0f} MB free for {folder}"
    return Finding("disk", "FAILED" if needed > free else "ok", text)
