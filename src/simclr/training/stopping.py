"""Requests to stop: signals that end a run after a checkpoint."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from simclr.errors import Interrupted

T = TypeVar("T")
# SIGHUP: the terminal was closed; SIGUSR1, SIGUSR2: SLURM's --signal; SIGXCPU: the limit of CPU time
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]
PATIENCE = timedelta(seconds=30)  # for the other processes to leave
FORWARDED = getattr(signal, "SIGUSR1", signal.SIGTERM)  # not SIGINT, which ends a process when it arrives twice


class _Requested(Exception):
    """A signal arrived while the process waited for data."""


class StopRequests:
    """Signals that ask a run to stop, agreed on by all processes before every step; a second SIGINT ends it at once.

    A process that gets a signal passes it on to the others on its machine, which may be waiting for data, too.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._requested = self._waiting = False
        self._before: dict[int, object] = {}
        self._peers: list[int] = []
        self._arrivals: socket.socket | None = None  # where the numbers of signals are written as they arrive
        self._wakeup = -1
        # messages between CPUs, so that no step waits for a GPU
        needs_group = fabric.world_size > 1 and fabric.device.type != "cpu"
        self._group = dist.new_group(backend="gloo") if needs_group else None

    def __enter__(self) -> "StopRequests":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        if self._fabric.world_size > 1:
            here = (socket.gethostname(), os.getpid())
            everyone: list = [None] * self._fabric.world_size
            dist.all_gather_object(everyone, here, group=self._group)
            self._peers = [pid for host, pid in everyone if host == here[0] and pid != here[1]]
            if in_main:
                self._arrivals, arrivals = socket.socketpair()
                self._arrivals.setblocking(False)
                self._wakeup = signal.set_wakeup_fd(self._arrivals.fileno(), warn_on_full_buffer=False)
                threading.Thread(target=self._pass_on, args=(arrivals,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._arrivals is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._arrivals.close()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if self._waiting:
            self._waiting = False
            raise _Requested

    def _pass_on(self, arrivals: socket.socket) -> None:
        """Tell the other processes of the first request. This is a thread, since the process may be waiting for them in
        a call of the communication library, during which Python calls no handler of a signal."""
        told = False
        with arrivals:
            while numbers := arrivals.recv(64):  # until the sending end is closed
                if not told and set(numbers) & set(SIGNALS):
                    told = True
                    for pid in self._peers:
                        with contextlib.suppress(OSError):  # it has ended
                            os.kill(pid, FORWARDED)

    def wait_for(self, produce: Callable[[], T]) -> T | None:
        """Return `produce()`, which waits for data; return None as soon as a request arrives."""
        try:
            try:
                self._waiting = True
                return None if self._requested else produce()
            finally:
                self._waiting = False
        except _Requested:  # raised in `produce`, or just after it
            return None

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
