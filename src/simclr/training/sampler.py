"""Batch sampler: which images make up which batch, and what replaces those that cannot be read.

Everything here is a function of the seed and the step, so that a run resumes at any step, on any number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int64

from simclr.data.source import Source
from simclr.errors import SettingError, TooManyBadImages, UnreadableImage
from simclr.randomness import REPLACEMENT_STREAM, bits, permutation
from simclr.training.order import ShardOrder

ATTEMPTS = 32  # images tried in place of an unreadable one; if half are bad, all fail once in 4e9
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # in each byte
FEWEST_BAD = 20  # number of unreadable images that never ends a run, whatever fraction they are


@dataclass(frozen=True)
class BatchSampler:
    """Batches of `batch` images (all processes together) out of n, for process `rank` of `world`.

    Each epoch is a permutation of the images, cut into whole batches; the remainder is left out. It is `order` if
    given, for tar files with an index, else a shuffle of all images.
    """

    n: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    order: ShardOrder | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.n:
            raise SettingError("batch", f"at least 1 and at most {self.n}, the number of images", self.batch)
        if self.batch % self.world:
            raise SettingError("batch", f"a multiple of {self.world}, the number of processes", self.batch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch."""
        return self.n // self.batch

    @property
    def local(self) -> int:
        """Number of images of a batch on this process."""
        return self.batch // self.world

    def epoch(self, step: int) -> int:
        """Return the epoch of a step."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Int64[np.ndarray, " b"]:
        """Return the images of this process in batch `step`."""
        return self.whole(step)[self.rank * self.local :][: self.local]

    def whole(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Return the images of all processes in batch `step`."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if self.order is not None:
            return self.order(self.seed, epoch, np.arange(k * self.batch, (k + 1) * self.batch))
        return _permutation(self.seed, epoch, self.n)[k * self.batch :][: self.batch]

    def replacements(self, step: int, index: int) -> Iterator[int]:
        """Yield the images to try, in this order, in place of the unreadable image `index` of batch `step`.

        Images outside of the batch come first: an image that is twice in a batch has identical views twice, which
        would be each other's negatives. With an order of tar files, they are in the block that is being read. Raises
        TooManyBadImages after 32.
        """
        epoch, k = divmod(step, self.steps_per_epoch)
        words = bits(self.seed, epoch, index, REPLACEMENT_STREAM, np.arange(ATTEMPTS))
        if self.order is None:
            others = (words % np.uint64(self.n)).astype(np.int64)
        else:
            start, stop = self.order.block_at(self.seed, epoch, k * self.batch)
            others = self.order(self.seed, epoch, start + (words % np.uint64(stop - start)).astype(np.int64))
        within = np.isin(others, self.whole(step))
        yield from others[np.argsort(within, kind="stable")].tolist()
        raise TooManyBadImages(f"image {index} cannot be read, nor can {ATTEMPTS} others tried in its place")


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " n"]:
    return permutation(seed, epoch, n)


class BadImages:
    """Record of unreadable images, which ends a run that has too many.

    The limit is a fraction `limit` of the distinct images tried so far, and never below 20 images.
    """

    def __init__(self, source: Source, limit: float):
        self.reasons: dict[str, str] = {}
        self._source = source
        self._limit = limit
        self._seen = np.zeros(-(-len(source) // 8), np.uint8)  # a bit for each image
        self._tried: set[str] = set()  # unreadable images that were drawn, and those that were to replace others
        self._replacements: set[str] = set()

    @property
    def tried(self) -> int:
        """Number of distinct images tried: those that were drawn, and unreadable ones that were to replace others."""
        return int(_ONES[self._seen].sum(dtype=np.int64)) + len(self._replacements - self._tried)

    def record(self, tried: Int[np.ndarray, " b"], bad: list[UnreadableImage]) -> None:
        """Record that of the images `tried` (indices) those in `bad` are unreadable. Raises TooManyBadImages."""
        np.bitwise_or.at(self._seen, tried >> 3, np.uint8(1) << (tried & 7).astype(np.uint8))
        if not bad:
            return
        self.reasons |= {error.path: error.reason for error in bad}
        names = {self._source.path(i) for i in tried}
        for error in bad:
            (self._tried if error.path in names else self._replacements).add(error.path)
        count, seen = len(self.reasons), self.tried
        if count >= FEWEST_BAD and count > self._limit * seen:
            raise TooManyBadImages(
                f"{self._source.name}: {count} of {seen} images are unreadable, more than the fraction "
                f"{self._limit:g} that max_bad allows. The last one is {bad[-1]}"
            )
