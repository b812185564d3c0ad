"""Hardware, software versions and code version of this process."""

import hashlib
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def code_hash() -> str:
    """Hash of the package's Python files: says whether two results came from the same code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
