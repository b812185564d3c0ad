"""Requests to stop: signals that end a run after a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from simclr.errors import Interrupted

# SIGHUP: the terminal was closed; SIGUSR1, SIGUSR2: SLURM's --signal; SIGXCPU: the limit of CPU time
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]
PATIENCE = timedelta(seconds=30)  # for the other processes to leave


class StopRequested(Exception):
    """A signal arrived while the process waited for data."""


class StopRequests:
    """Signals that ask a run to stop, agreed on by all processes after every step; a second SIGINT ends it at once."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._requested = self._waiting = False
        self._before: dict[int, object] = {}
        # messages between CPUs, so that no step waits for a GPU
        needs_group = fabric.world_size > 1 and fabric.device.type != "cpu"
        self._group = dist.new_group(backend="gloo") if needs_group else None

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if self._waiting:
            self._waiting = False
            raise StopRequested

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise StopRequested as soon as a request arrives in this block, which waits for data."""
        if self._requested and self._fabric.world_size == 1:
            raise StopRequested
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def on_any_rank(self) -> bool:
        """Return True on every process as soon as one was asked to stop, so that none waits for another for ever."""
        if self._fabric.world_size == 1:
            return self._requested
        requested = torch.tensor(float(self._requested))
        dist.all_reduce(requested, group=self._group)
        return bool(requested)

    def leave(self, step: int, steps: int) -> NoReturn:
        """Wait for the checkpoint of the first process and raise Interrupted: a process that leaves ends the others."""
        if self._fabric.world_size > 1:
            with contextlib.suppress(RuntimeError):  # a process that waits for another one does not come
                dist.monitored_barrier(self._group, timeout=PATIENCE)
        raise Interrupted(
            f"interrupted at step {step} of {steps}; checkpoint saved. Run the same command again to resume"
        )
