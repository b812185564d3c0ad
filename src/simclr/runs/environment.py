"""Hardware, software versions and code version of this process."""

import ast
import contextlib
import functools
import hashlib
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of CPU cores that this process may use: its affinity and its container's CPU quota, rounded
    up."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(available, _quota())))


def _quota() -> float:
    """Return the CPU quota of this process's control group (versions 2 and 1) in cores; infinity if there is none."""
    for folder, files in (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):
        with contextlib.suppress(OSError, ValueError):
            words = " ".join((CGROUPS / folder / name).read_text() for name in files).split()
            if float(words[0]) > 0:  # version 2 writes max, version 1 writes -1, where there is no quota
                return float(words[0]) / float(words[1])
    return math.inf


def environment() -> dict[str, Any]:
    """Versions, hardware and command of this process: the evidence beside a result."""
    cuda = torch.cuda.is_available()
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "simclr": version("simclr-toolkit"),
        "code": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if several else 1,
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def is_restart() -> bool:
    """Return whether torchrun or SLURM has started this command again."""
    return any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


@functools.cache
def code_hash() -> str:
    """Return a hash of the package's Python code without docstrings and comments: equal for two results that the same
    code computed."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n{code_of(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def code_of(text: str) -> str:
    """Return the syntax tree of Python source, without docstrings (those of fields included), as text."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
