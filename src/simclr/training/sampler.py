"""Which images make up which batch, and what stands in for those that cannot be read.

All of it is a function of the seed and the step, so that a run continues anywhere, on any number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int64

from simclr.data.source import Source
from simclr.errors import TooManyBadImages, UnreadableImage
from simclr.randomness import bits, permutation

ATTEMPTS = 32  # images tried in place of an unreadable one; if half are bad, all fail once in 4e9
FEWEST_BAD = 20  # unreadable images that never end a run, whatever their fraction
_VIEW = 1 << 20  # a view number for the draw of replacements that no view has


@dataclass(frozen=True)
class Order:
    """Batches of `batch` images (all processes together) out of n, for process `rank` of `world`.

    Each epoch is a permutation of the images, cut into whole batches; the rest of it is left out.
    """

    n: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.n:
            raise ValueError(f"batch is {self.batch}; there are {self.n} images, and at most as many are allowed")
        if self.batch % self.world:
            raise ValueError(f"batch is {self.batch}; it must be a multiple of the {self.world} processes")

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch

    @property
    def local(self) -> int:
        """Images of a batch that this process gets."""
        return self.batch // self.world

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> Int64[np.ndarray, " b"]:
        """The images of this process in batch `step`."""
        return self.whole(step)[self.rank * self.local :][: self.local]

    def whole(self, step: int) -> Int64[np.ndarray, " batch"]:
        """The images of all processes in batch `step`."""
        epoch, k = divmod(step, self.steps_per_epoch)
        return _permutation(self.seed, epoch, self.n)[k * self.batch :][: self.batch]

    def replacements(self, step: int, index: int) -> Iterator[int]:
        """The images to try, in this order, in place of the unreadable image `index` of batch `step`.

        First those outside the batch: an image that is twice in a batch has the very same views twice, and they
        would be each other's negatives. Raises TooManyBadImages after 32.
        """
        words = bits(self.seed, self.epoch(step), index, _VIEW, np.arange(ATTEMPTS))
        others = (words % np.uint64(self.n)).astype(np.int64)
        within = np.isin(others, self.whole(step))
        yield from others[np.argsort(within, kind="stable")].tolist()
        raise TooManyBadImages(f"image {index} cannot be read, nor can {ATTEMPTS} others tried in its place")


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " n"]:
    return permutation(seed, epoch, n)


class BadImages:
    """Counts what could not be read, and ends a run in which it is too much.

    The limit is a fraction `limit` of the different images tried so far, and never fewer than 20 images.
    """

    def __init__(self, source: Source, limit: float):
        self.reasons: dict[str, str] = {}
        self._source = source
        self._limit = limit
        self._seen = np.zeros(len(source), bool)

    def note(self, tried: Int[np.ndarray, " b"], bad: list[UnreadableImage]) -> None:
        """Images `tried` (indices) were to be read and `bad` could not be; raises TooManyBadImages."""
        self._seen[tried] = True
        if not bad:
            return
        self.reasons |= {one.path: one.reason for one in bad}
        count, seen = len(self.reasons), np.count_nonzero(self._seen)
        if count >= FEWEST_BAD and count > self._limit * seen:
            raise TooManyBadImages(
                f"{self._source.name}: {count} of {seen} images cannot be read, and max_bad is "
                f"{self._limit:g} of them; one is {bad[-1]}"
            )
