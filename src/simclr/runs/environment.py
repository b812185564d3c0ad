"""Hardware, software versions and code version of this process."""

import contextlib
import functools
import hashlib
import math
import opcode
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

import torch
import torch.distributed as dist

from simclr.runs.allocation import return_freed_memory

CGROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of memory, in CGROUPS
HELD = {"memory.stat": "anon", "memory/memory.stat": "total_rss"}  # by processes, in CGROUPS
PARALLEL = "SIMCLR_PARALLEL"  # environment variable: number of cells of a study that share this machine at a time
NOTHING = opcode.opmap["NOP"]  # which Python compiles the docstring of a field to


def cores() -> int:
    """Return the number of CPU cores that this process may use: its affinity and its container's CPU quota, rounded
    up."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(available, _quota())))


def cpu_computes_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 numbers in hardware, as oneDNN uses it: AVX-512 BF16 or AMX. False for
    a torch that does not say."""
    features = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _quota() -> float:
    """Return the CPU quota of this process's control group (versions 2 and 1) in cores; infinity if there is none."""
    for folder, files in (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):
        with contextlib.suppress(OSError, ValueError):
            words = " ".join((CGROUPS / folder / name).read_text() for name in files).split()
            if float(words[0]) > 0:  # version 2 writes max, version 1 writes -1, where there is no quota
                return float(words[0]) / float(words[1])
    return math.inf


def total_memory(device: torch.device) -> float:
    """Return the memory of a GPU, or of this machine or container, bytes; infinity if the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    limits = [math.inf]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on Windows
        limits.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    for limit in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
            limits.append(float((CGROUPS / limit).read_text()))
    return min(limits)


def free_memory(device: torch.device) -> float:
    """Return the free memory, bytes: of a GPU with the unused part of torch's cache; else what the system reports as
    available, and of a container its limit without the memory that its processes hold."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return_freed_memory()  # which counts as used
    free = total_memory(device)
    with contextlib.suppress(OSError, StopIteration):  # Linux only
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = min(free, 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for file, name in HELD.items():
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = (CGROUPS / file).read_text().splitlines()
            held = int(next(line for line in lines if line.startswith(f"{name} ")).split()[1])
            free = min(free, max(total_memory(device) - held, 0.0))
    return free


def environment() -> dict[str, Any]:
    """Versions, hardware and command of this process: the evidence beside a result."""
    cuda = torch.cuda.is_available()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "simclr": version("simclr-toolkit"),
        "code": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "processes": dist.get_world_size() if has_processes() else 1,
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def _program() -> str:
    """Return the name of the program as a user types it; that of `python -m simclr` is the path of a file."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def has_processes() -> bool:
    """Return whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_restart() -> bool:
    """Return whether torchrun or SLURM has started this command again."""
    return any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@functools.cache
def code_hash() -> str:
    """Return a hash of the package's Python code without docstrings and comments: equal for two results that the same
    code computed on the same version of Python."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n{code_of(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def code_of(text: str) -> str:
    """Return what Python compiles a source to, without docstrings (those of fields included), assertions and line
    numbers, as text."""
    return _as_text(compile(text, "", "exec", dont_inherit=True, optimize=2))


def _as_text(value: Any) -> str:
    if isinstance(value, CodeType):
        pairs = zip(value.co_code[::2], value.co_code[1::2], strict=True)
        steps = bytes(byte for pair in pairs if pair[0] != NOTHING for byte in pair)
        parts = [steps, value.co_exceptiontable, value.co_flags, value.co_qualname, value.co_argcount]
        parts += [value.co_kwonlyargcount, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars]
        return repr((*parts, *map(_as_text, value.co_consts)))
    if isinstance(value, frozenset):  # whose order is another in each process
        return repr(sorted(map(_as_text, value)))
    return repr([_as_text(each) for each in value] if isinstance(value, tuple) else value)
