"""Worker processes: they decode, cut the crops of an image, and send them as bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from simclr.data.decoding import Picture
from simclr.data.source import Source
from simclr.errors import TooManyBadImages, UnreadableImage
from simclr.training.sampler import Order
from simclr.views import Views


class Crops(NamedTuple):
    """What a worker makes of the images `tried`; `indices` are those that were read, in their place."""

    tried: Int64[np.ndarray, " c"]
    indices: Int64[np.ndarray, " c"]
    sizes: Int64[np.ndarray, "c 2"]
    """height and width of each whole image, which its views are drawn for"""
    crops: UInt8[Tensor, "v c s s 3"]
    bad: list[UnreadableImage]


@dataclass(frozen=True)
class Cutter:
    """From (step, indices) to crops: a data set that worker processes can be given."""

    source: Source
    views: Views
    order: Order
    count: int = 2
    decode: Literal["exact", "fast"] = "exact"

    def __getitem__(self, key: tuple[int, Int64[np.ndarray, " c"]]) -> Crops | TooManyBadImages:
        step, tried = key
        n, size, epoch = len(tried), self.views.size, self.order.epoch(step)
        indices, sizes, bad = tried.copy(), np.empty((n, 2), np.int64), []
        crops = np.empty((self.count, n, size, size, 3), np.uint8)
        candidates = [chain([i], self.order.replacements(step, i)) for i in tried.tolist()]
        left = list(range(n))
        try:
            while left:  # once, but for images that open and then cannot be read
                pictures = []
                for k in left:
                    indices[k], picture = self._open(candidates[k], bad)
                    sizes[k] = picture.size
                    pictures.append(picture)
                drawn = self.views.draw_all(indices[left], epoch, self.count, self.order.seed, sizes[left])
                boxes, flips = np.stack([p.crop for p in drawn], 1), np.stack([p.flip for p in drawn], 1)
                rows = zip(left, pictures, boxes, flips, strict=True)
                left = [k for k, *one in rows if not self._cut(*one, crops[:, k], bad)]
        except TooManyBadImages as error:  # handed over, since a loader wraps what is raised in its traceback
            return TooManyBadImages(f"{self.source.name}: {error}; the last was {bad[-1]}")
        return Crops(tried, indices, sizes, torch.from_numpy(crops), bad)

    def _open(self, candidates: Iterator[int], bad: list[UnreadableImage]) -> tuple[int, Picture]:
        """The first image that opens; those before it go to `bad`."""
        while True:
            index = next(candidates)
            try:
                return index, self.source.open(index)
            except UnreadableImage as error:
                bad.append(error)

    def _cut(
        self,
        picture: Picture,
        boxes: Int64[np.ndarray, "v 4"],
        flips: Bool[np.ndarray, " v"],
        out: UInt8[np.ndarray, "v s s 3"],
        bad: list[UnreadableImage],
    ) -> bool:
        """All crops of an image to `out`; False where it cannot be read."""
        start, stop = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
        spare = int(boxes[:, 2:].min()) // self.views.size if self.decode == "fast" else 1
        part = max(part for part in (1, 2, 4, 8) if part <= max(spare, 1))
        try:
            found = picture.read((*start.tolist(), *(stop - start).tolist()), part)
        except UnreadableImage as error:
            bad.append(error)
            return False
        for v, (box, flip) in enumerate(zip(boxes, flips, strict=True)):
            out[v] = self.views.crop(found.pixels, found.place(box, picture.size), flip)
        return True
