"""Signs of life between the processes of a run, so that one that dies ends the others and is named."""

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from simclr.errors import Interrupted
from simclr.runs.environment import has_processes
from simclr.training.gathering import is_lost_peer

BEAT = 1.0  # seconds between signs of life
SILENCE = 60.0  # seconds without one, after which a process counts as dead
GRACE = 10.0  # seconds in which this process may end by the error of its communication library
_LEFT = 1 << 40  # added to the count of a process that has ended in order
_TRAININGS = itertools.count()


class Peers:
    """Context in which each process gives signs of life to the store of the process group.

    The first process watches all others, and these watch it and what it has found. A process that waits in its
    communication library for one that is dead, which can take half an hour, is ended: with NCCL nothing else can.
    """

    def __init__(self, folder: Any, store: dist.Store | None = None, rank: int = 0, world: int = 1) -> None:
        """By default store, rank and number of processes are those of the process group, if there is one."""
        if store is None and has_processes():
            # the processes train one network after another, in one order, such as those of a study
            store = dist.PrefixStore(f"peers-{next(_TRAININGS)}", _get_default_store())
            rank, world = dist.get_rank(), dist.get_world_size()
        self._store, self._rank, self.world, self._folder = store, rank, world, folder
        self._ended = threading.Event()

    def __enter__(self) -> "Peers":
        if self._store is not None:
            self._give()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        if self._store is not None and (kind is None or issubclass(kind, Interrupted)):
            self._give(_LEFT)

    @property
    def has_peers(self) -> bool:
        """Whether there are other processes."""
        return self._store is not None

    def find_lost(self, wait: float = 4 * BEAT) -> int | None:
        """Return the first process that gives no sign of life for some seconds without having left; None if all do."""
        before = self._counts()
        self._ended.wait(wait)
        now = self._counts()
        lost = [rank for rank in range(self.world) if before[rank] == now[rank] < _LEFT and rank != self._rank]
        return lost[0] if lost else None

    def _watch(self) -> None:
        watched = [rank for rank in range(self.world) if rank != self._rank] if self._rank == 0 else [0]
        counts, silence = dict.fromkeys(watched, -1), dict.fromkeys(watched, 0.0)
        while not self._ended.wait(BEAT):
            self._give()
            for rank in watched:
                now = self._count(rank)
                silence[rank] = 0.0 if now != counts[rank] or now >= _LEFT else silence[rank] + BEAT
                counts[rank] = now
            if lost := self._read_lost() or [rank for rank in watched if silence[rank] >= SILENCE]:
                return self._end(lost[0])

    def _read_lost(self) -> list[int]:
        """Return the process that the first one has found to be dead."""
        try:
            return [number - 1] if (number := self._store.add("lost", 0)) else []
        except RuntimeError:
            return []

    def _end(self, rank: int) -> None:
        """End this process, which waits for a dead one, unless it ends by itself."""
        if self._rank == 0:
            self._store.add("lost", rank + 1)
        if not self._ended.wait(GRACE):
            print(f"{self._folder}: {describe_lost(rank, self.world)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _give(self, count: int = 1) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone with the process that held it
            self._store.add(str(self._rank), count)

    def _count(self, rank: int) -> int:
        try:
            return self._store.add(str(rank), 0)
        except RuntimeError:
            return -1

    def _counts(self) -> list[int]:
        return [self._count(rank) for rank in range(self.world)]


@contextlib.contextmanager
def watched(folder: Any) -> Iterator[None]:
    """Watch the other processes; raise ConnectionError that names the one that has died if communication fails."""
    peers = Peers(folder)
    with peers:
        try:
            yield
        except RuntimeError as error:
            if peers.has_peers and is_lost_peer(error):
                raise ConnectionError(f"{folder}: {describe_lost(peers.find_lost(), peers.world)}") from error
            raise


def describe_lost(rank: int | None, world: int) -> str:
    """Return what is said of a process that has died."""
    which = "another process" if rank is None else f"process {rank} of {world} (counted from 0)"
    return f"{which} has ended unexpectedly. Run the same command again to resume"
