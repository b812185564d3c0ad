"""What a training step needs of a device's memory, and what there is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

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
