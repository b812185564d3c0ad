"""Copying of remote tar files ahead of need."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
    """Thread that copies the tar files of a block to this machine while the block before it is read.

    The processes of a machine each begin with other files, and one that asks for a file that another is copying waits
    for it. What cannot be copied is left to the process that reads it, which raises.
    """

    def __init__(self, source: IndexedShards, sampler: BatchSampler, steps: range) -> None:
        self._files, self._sampler, self._steps = source.shards, sampler, steps
        self._step, self._ended = steps.start, False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def reach(self, step: int) -> None:
        """Record that the batch of a step is requested."""
        with self._changed:
            self._step = step
            self._changed.notify()

    def end(self) -> None:
        """End the thread, with the files it is copying."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _work(self) -> None:
        before = self._steps.start
        with ThreadPoolExecutor(STREAMS) as pool:
            for first, shards in blocks(self._sampler, self._steps):
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or self._step >= before)
                shift = self._sampler.rank * len(shards) // self._sampler.world
                list(pool.map(self._copy, np.roll(shards, -shift).tolist()))
                before = first

    def _copy(self, shard: int) -> None:
        with contextlib.suppress(DataError):
            if not self._ended:
                self._files[shard].local()


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
