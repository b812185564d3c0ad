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

ATTEMPTS = 32  # images tried in place of an unreadable one; if half are bad, all fail once in 4e9
FEWEST_BAD = 20  # number of unreadable images that never ends a run, whatever fraction they are


@dataclass(frozen=True)
class BatchSampler:
    """Batches of `batch` images (all processes together) out of n, for process `rank` of `world`.

    Each epoch is a permutation of the images, cut into whole batches; the remainder is left out.
    """

    n: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1

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
        return _permutation(self.seed, epoch, self.n)[k * self.batch :][: self.batch]

    def replacements(self, step: int, index: int) -> Iterator[int]:
        """Yield the images to try, in this order, in place of the unreadable image `index` of batch `step`.

        Images outside of the batch come first: an image that is twice in a batch has identical views twice, which
        would be each other's negatives. Raises TooManyBadImages after 32.
        """
        words = bits(self.seed, self.epoch(step), index, REPLACEMENT_STREAM, np.arange(ATTEMPTS))
        others = (words % np.uint64(self.n)).astype(np.int64)
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
        self._seen = np.zeros(len(source), bool)
        self._tried: set[str] = set()  # unreadable images that were drawn, and those that were to replace others
        self._replacements: set[str] = set()

    @property
    def tried(self) -> int:
        """Number of distinct images tried: those that were drawn, and unreadable ones that were to replace others."""
        return int(np.count_nonzero(self._seen)) + len(self._replacements - self._tried)

    def record(self, tried: Int[np.ndarray, " b"], bad: list[UnreadableImage]) -> None:
        """Record that of the images `tried` (indices) those in `bad` are unreadable. Raises TooManyBadImages."""
        self._seen[tried] = True
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
