"""Copying of remote tar files ahead of need."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from simclr.data.indexed import IndexedShards
from simclr.data.remote import Cache, RemoteFile
from simclr.data.source import Source
from simclr.errors import DataError, SettingError
from simclr.training.order import BLOCK
from simclr.training.sampler import BatchSampler

STREAMS = 4  # files that a process copies at a time


class Ahead:
    """Threads that copy the tar files of a block to this machine while the block before it is read.

    The processes of a machine each begin with other files, and one that asks for a file that another is copying waits
    for it. What cannot be copied is left to the process that reads it, which raises. A process that ends does not wait
    for the threads.
    """

    def __init__(self, source: IndexedShards, sampler: BatchSampler, steps: range) -> None:
        self._files, self._shards = source.shards, _in_order(sampler, steps)
        self._step, self._ended = steps.start, False
        self._changed = threading.Condition()
        for _ in range(STREAMS):
            threading.Thread(target=self._work, daemon=True).start()

    def reach(self, step: int) -> None:
        """Record that the batch of a step is requested."""
        with self._changed:
            self._step = step
            self._changed.notify_all()

    def end(self) -> None:
        """End the threads, each after the file it is copying."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            with contextlib.suppress(DataError):
                self._files[shard].local()

    def _next(self) -> int | None:
        """Return the next tar file to copy, once it is its time; None at the end."""
        with self._changed:
            step, shard = next(self._shards, (0, None))
            self._changed.wait_for(lambda: self._ended or self._step >= step)
            return None if self._ended else shard


def _in_order(sampler: BatchSampler, steps: range) -> Iterator[tuple[int, int]]:
    """Yield the tar files that a process copies, each with the step from which on it may: the first of the block before
    its own."""
    before = steps.start
    for first, shards in blocks(sampler, steps):
        shift = sampler.rank * len(shards) // sampler.world
        for shard in np.roll(shards, -shift).tolist():
            yield before, shard
        before = first


def blocks(sampler: BatchSampler, steps: range) -> Iterator[tuple[int, Int64[np.ndarray, " k"]]]:
    """Yield the first step and the tar files of each block that is read in some steps."""
    length = sampler.steps_per_epoch
    for epoch in range(sampler.epoch(steps.start), sampler.epoch(steps.stop - 1) + 1):
        start, stop = max(steps.start - epoch * length, 0), min(steps.stop - epoch * length, length)
        for position, shards in sampler.order.blocks(sampler.seed, epoch, start * sampler.batch, stop * sampler.batch):
            yield epoch * length + position // sampler.batch, shards


def is_copied(source: Source) -> bool:
    """Return whether the images are in tar files that are copied to this machine, in the order of these files.

    Raises SettingError if the cache is too small for the files that are read at a time.
    """
    if not isinstance(source, IndexedShards) or not isinstance(source.shards[0], RemoteFile):
        return False
    needed = sum(sorted((file.bytes for file in source.shards), reverse=True)[: 2 * BLOCK])
    if needed > (most := Cache.here().most):
        allowed = f"at least {needed / 1e9:.3g}, the size of {2 * BLOCK} tar files of {source.name}"
        raise SettingError("SIMCLR_CACHE_GB", allowed, f"{most / 1e9:g}")
    return True
