"""Order of the images of large sets of tar files, in two levels, without a table of the images.

In every epoch the tar files are shuffled and cut into blocks of `BLOCK` files; the images of a block are shuffled
together. So a block is read from start to end before the next one, and its files can be copied ahead of need. Each
position is a function of the seed, the epoch and the position; memory grows with the number of files, not of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Int64

from simclr.randomness import SHARD_STREAM, permutation, shuffled

BLOCK = 16  # tar files whose images are shuffled together; results depend on it


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """Order of images that lie in files one after another, image i in file k if starts[k] <= i < starts[k + 1]."""

    starts: Int64[np.ndarray, " shards_plus_1"]

    def __call__(self, seed: int, epoch: int, positions: Int[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Return the images at positions of an epoch."""
        shards, ends, bounds = _layout(self, seed, epoch)
        blocks = np.searchsorted(bounds, positions, side="right") - 1
        places = np.empty(len(positions), np.int64)
        for block in np.unique(blocks).tolist():
            rows, (start, stop) = blocks == block, bounds[block : block + 2].tolist()
            places[rows] = start + shuffled(positions[rows] - start, stop - start, seed, epoch, block, SHARD_STREAM)
        k = np.searchsorted(ends, places, side="right") - 1
        return self.starts[shards[k]] + places - ends[k]

    def block_at(self, seed: int, epoch: int, position: int) -> tuple[int, int]:
        """Return the first position of the block at a position of an epoch, and the one after its last."""
        _, _, bounds = _layout(self, seed, epoch)
        block = int(np.searchsorted(bounds, position, side="right")) - 1
        return int(bounds[block]), int(bounds[block + 1])

    def blocks(self, seed: int, epoch: int, start: int, stop: int) -> Iterator[tuple[int, Int64[np.ndarray, " k"]]]:
        """Yield, for each block of the positions start..stop of an epoch, its first position and its files."""
        shards, _, bounds = _layout(self, seed, epoch)
        first, last = np.searchsorted(bounds, (start, stop - 1), side="right") - 1
        for block in range(int(first), int(last) + 1):
            yield int(bounds[block]), shards[block * BLOCK : (block + 1) * BLOCK]


@lru_cache(maxsize=4)
def _layout(order: ShardOrder, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the files in the order of an epoch, the positions at which they begin, and those at which blocks begin,
    each with the number of images as its last value."""
    sizes = np.diff(order.starts)
    shards = np.flatnonzero(sizes)
    shards = shards[permutation(seed, epoch, len(shards))]
    ends = np.concatenate([[0], np.cumsum(sizes[shards])])
    return shards, ends, np.unique(np.append(ends[:-1:BLOCK], ends[-1]))
