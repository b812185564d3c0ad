"""Crops from worker processes: each image is decoded once, its crops are cut and sent."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Int, Int64, Real
from torch import Tensor

from simclr.data.decoding import LazyImage
from simclr.data.in_memory import decode_all
from simclr.data.source import Objects, Source
from simclr.errors import TooManyBadImages, UnreadableImage
from simclr.runs.environment import PARALLEL, free_memory
from simclr.training.ahead import is_copied
from simclr.training.sampler import BatchSampler
from simclr.views import ViewParameters, Views, by_policy, by_size

Decoded = Sequence[Real[np.ndarray, "_ _ c"] | UnreadableImage]
PART_OF_FREE = 0.25  # of the memory, for decoded images
LONG = 5.0  # seconds of decoding that are announced


class Crops(NamedTuple):
    """Crops of the images `indices`, which are the images `tried` after unreadable ones were replaced."""

    tried: Int64[np.ndarray, " c"]
    indices: Int64[np.ndarray, " c"]
    sizes: Int64[np.ndarray, "c 2"]
    """height and width of each whole image, which its views are drawn for"""
    crops: tuple[Real[Tensor, "_ c _ _ channels"], ...]
    """crops of each group of views of one size, as in `by_size`"""
    bad: list[UnreadableImage]


def decode_once(source: Source, max_bytes: int) -> Decoded | None:
    """Return all images of files that fit in `max_bytes` and in a part of the free memory, so that no epoch decodes
    them again; None if they do not fit, or could change from one reading to the next. The crops are the same."""
    if source.scaling is not None or isinstance(source, Objects) or is_copied(source):
        return None
    processes = dist.get_world_size() if dist.is_initialized() else 1  # all may be on this node
    rank = dist.get_rank() if dist.is_initialized() else 0

    def announce(seconds: float) -> None:
        if seconds > LONG and rank == 0:
            print(f"decoding {len(source):,} images once, for about {seconds:.0f} s", file=sys.stderr, flush=True)

    free = free_memory(torch.device("cpu")) / int(os.environ.get(PARALLEL, "1"))
    return decode_all(source, min(max_bytes, PART_OF_FREE * free) / processes, announce)


def draw_views(
    policies: Sequence[Views],
    indices: Int[np.ndarray, " b"],
    epoch: int,
    seed: int,
    sizes: Int[np.ndarray, "b 2"] | tuple[int, int],
) -> list[ViewParameters]:
    """Return the parameters of view k by policy k, for every policy."""
    groups = zip(by_policy(policies), draw_groups(policies, indices, epoch, seed, sizes), strict=True)
    return [view for (count, _), drawn in groups for view in drawn.split(count)]


def draw_groups(
    policies: Sequence[Views],
    indices: Int[np.ndarray, " b"],
    epoch: int,
    seed: int,
    sizes: Int[np.ndarray, "b 2"] | tuple[int, int],
) -> list[ViewParameters]:
    """Return the parameters of the views of each group of `by_policy`, view-major."""
    drawn, first = [], 0
    for count, policy in by_policy(policies):
        drawn.append(policy.draw_together(indices, epoch, count, seed, sizes, first))
        first += count
    return drawn


@dataclass(frozen=True)
class CropDataset:
    """Map from (step, indices) to crops: a data set for worker processes."""

    source: Source
    policies: Sequence[Views]
    sampler: BatchSampler
    decode: Literal["exact", "fast"] = "exact"
    decoded: Decoded | None = None
    """all images, if they were decoded before"""

    @property
    def form(self) -> tuple[int, str]:
        """Return number of channels and type of the crops: bytes, or float32 if the images are scaled."""
        return self.source.channels, "uint8" if self.source.scaling is None else "float32"

    @property
    def pixel_bytes(self) -> int:
        """Return the size of a pixel of a crop, bytes."""
        return self.form[0] * np.dtype(self.form[1]).itemsize

    def __getitem__(self, key: tuple[int, Int64[np.ndarray, " c"]]) -> Crops | TooManyBadImages:
        step, tried = key
        n, epoch = len(tried), self.sampler.epoch(step)
        indices, sizes, bad = tried.copy(), np.empty((n, 2), np.int64), []
        channels, dtype = self.form
        crops = [np.empty((count, n, size, size, channels), dtype) for count, size in by_size(self.policies)]
        views = [view for group in crops for view in group]
        candidates = [chain([i], self.sampler.replacements(step, i)) for i in tried.tolist()]
        left = list(range(n))
        try:
            while left:  # a single time, unless images open and then cannot be read
                images = []
                for k in left:
                    indices[k], image = self._open(candidates[k], bad)
                    sizes[k] = image.size
                    images.append(image)
                drawn = draw_views(self.policies, indices[left], epoch, self.sampler.seed, sizes[left])
                boxes, flips = np.stack([p.crop for p in drawn], 1), np.stack([p.flip for p in drawn], 1)
                outputs = [[view[k] for view in views] for k in left]
                rows = zip(left, images, boxes, flips, outputs, strict=True)
                left = [k for k, image, box, flip, out in rows if not self._cut(image, box, flip, out, bad)]
        except TooManyBadImages as error:  # returned, since a loader wraps what is raised in its traceback
            return TooManyBadImages(f"{self.source.name}: {error}. The last one is {bad[-1]}")
        return Crops(tried, indices, sizes, tuple(map(torch.from_numpy, crops)), bad)

    def _open(self, candidates: Iterator[int], bad: list[UnreadableImage]) -> tuple[int, LazyImage]:
        """Return the first image that opens; append those before it to `bad`."""
        while True:
            index = next(candidates)
            try:
                return index, self._image(index)
            except UnreadableImage as error:
                bad.append(error)

    def _image(self, index: int) -> LazyImage:
        if self.decoded is None:
            return self.source.open(index)
        image = self.decoded[index]
        if isinstance(image, UnreadableImage):
            raise UnreadableImage(image.path, image.reason)
        return LazyImage.of(image, self.source.path(index))

    def _cut(
        self,
        image: LazyImage,
        boxes: Int64[np.ndarray, "v 4"],
        flips: Bool[np.ndarray, " v"],
        out: list[Real[np.ndarray, "_ _ c"]],
        bad: list[UnreadableImage],
    ) -> bool:
        """Write all crops of an image to `out`; return False if it cannot be read."""
        start, stop = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
        spares = (int(side) // policy.size for side, policy in zip(boxes[:, 2:].min(1), self.policies, strict=True))
        spare = min(spares) if self.decode == "fast" else 1
        reduction = max(factor for factor in (1, 2, 4, 8) if factor <= max(spare, 1))
        try:
            region = image.read((*start.tolist(), *(stop - start).tolist()), reduction)
        except UnreadableImage as error:
            bad.append(error)
            return False
        for policy, box, flip, view in zip(self.policies, boxes, flips, out, strict=True):
            view[:] = policy.crop(region.pixels, region.map_box(box, image.size), flip)
        return True
