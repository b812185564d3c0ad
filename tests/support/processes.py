"""Functions in several processes connected by gloo, and the program with a compiler that compiles nothing."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _entry(rank: int, world: int, port: int, folder: str, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_processes(function: Callable, *arguments, world: int = 2) -> list:
    """Return [function(rank, world, *arguments) for every rank], each computed in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_entry, (world, port, folder, function, arguments), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


COMPILED_CHEAPLY = """
import functools, sys
from torch.nn import Module
Module.compile = functools.partialmethod(Module.compile, backend="eager")
from simclr.cli import main
sys.exit(main(sys.argv[1:]))
"""
