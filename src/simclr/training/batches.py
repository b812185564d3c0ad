"""Batches of views for training, from images that lie on the device or from worker processes."""

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.data.loading import CHUNK, MAX_BYTES, Loaded, ahead, load_images, loader
from simclr.data.source import Source
from simclr.errors import TooManyBadImages
from simclr.runs.environment import cores
from simclr.training.crops import Crops, Cutter
from simclr.training.sampler import BadImages, Order
from simclr.views import ViewParameters, Views
from simclr.views.torch_backend import send

Device = torch.device | str


class Batch(NamedTuple):
    """What one process gets of a batch: b = batch / world images."""

    step: int
    indices: Int64[np.ndarray, " b"]
    """the images, after unreadable ones were replaced"""
    views: Float[Tensor, "v b 3 s s"]
    """view k of image i is views[k, i], in [0, 1], each image with its channels last in memory"""


class Resident:
    """Batches from images that lie on the device, uint8, and are cropped there.

    Call it with a range of steps; what a step gives depends on nothing but the step. `bad` holds the path and the
    reason of every image that could not be loaded.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        *,
        batch: int,
        seed: int,
        device: Device = "cpu",
        rank: int = 0,
        world: int = 1,
        max_bad: float = 0.05,
        count: int = 2,
        loaded: Loaded | None = None,
    ):
        """`count` is the number of views of an image; `loaded` is what `load_images` gave, if that is known already.
        Raises TooManyBadImages where more than the fraction `max_bad` of the images is unreadable."""
        self.order = Order(len(source), batch, seed, rank, world)
        self.views, self.count = views, count
        loaded = loaded or load_images(source)
        if loaded is None:
            raise ValueError(f"{source.name}: cannot be resident, since its images differ in size or are too many")
        record = BadImages(source, max_bad)
        record.note(np.arange(len(source)), list(loaded.bad.values()))
        self.bad = record.reasons
        self._unreadable = np.isin(np.arange(len(source)), list(loaded.bad))
        self._images = torch.from_numpy(loaded.images).to(device)

    def __call__(self, steps: range) -> Iterator[Batch]:
        for step, indices, parameters in ahead(self._drawn(steps)):
            images = self._images[send(indices, self._images.device)]
            memory = _memory(len(parameters), len(indices), self.views.size, images.device)
            for one, out in zip(parameters, memory, strict=True):
                self.views.apply(images, one, out=out)
            yield Batch(step, indices, memory.permute(0, 1, 4, 2, 3))

    def _drawn(self, steps: range) -> Iterator[tuple[int, np.ndarray, list[ViewParameters]]]:
        size = tuple(self._images.shape[1:3])
        for step in steps:
            epoch, indices = self.order.epoch(step), self.order.indices(step).copy()
            for k in np.flatnonzero(self._unreadable[indices]):
                others = self.order.replacements(step, int(indices[k]))
                indices[k] = next(i for i in others if not self._unreadable[i])
            yield step, indices, self.views.draw_all(indices, epoch, self.count, self.order.seed, size)


class Streamed:
    """Batches from worker processes, which decode each image once and cut all crops of it.

    Crops cross to this process as uint8; colour is worked on here, on the device. Call it with a range of steps;
    what a step gives depends on nothing but the step. `bad` holds the path and the reason of every unreadable image
    so far.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        *,
        batch: int,
        seed: int,
        device: Device = "cpu",
        rank: int = 0,
        world: int = 1,
        max_bad: float = 0.05,
        count: int = 2,
        workers: int | None = None,
        decode: Literal["exact", "fast"] = "exact",
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
    ):
        """`decode` fast reads JPEG files at a half, a quarter or an eighth where every crop of the image still has the
        pixels of a view; exact reads them whole. `workers` is the number of processes, 0 for none but this one, by
        default one for each CPU core; `start_method` is how they are started, by default as Python does it on the
        system."""
        self.order = Order(len(source), batch, seed, rank, world)
        self.views, self.count = views, count
        self.device = torch.device(device)
        self.workers = cores() if workers is None else workers
        self.start_method = start_method
        self._cutter = Cutter(source, views, self.order, count, decode)
        self._record = BadImages(source, max_bad)
        self.bad = self._record.reasons

    def __call__(self, steps: range) -> Iterator[Batch]:
        """Raises TooManyBadImages once more than the fraction `max_bad` of the images seen is unreadable."""
        per_step = -(-self.order.local // CHUNK)
        if self.workers:  # compile the crop once, here, rather than in each worker at the same time
            self.views.crop(np.zeros((1, 1, 3), np.uint8), np.array([0, 0, 1, 1]), False)
        chunks = iter(
            loader(
                self._cutter,
                self._keys(steps),
                workers=self.workers,
                ahead=2 * per_step,
                item_bytes=self.count * CHUNK * 3 * self.views.size**2,
                pin=self.device.type == "cuda",
                start_method=self.start_method,
            )
        )
        for step in steps:
            parts = [self._checked(part) for part in islice(chunks, per_step)]
            indices = np.concatenate([part.indices for part in parts])
            sizes = np.concatenate([part.sizes for part in parts])
            crops = torch.cat([part.crops.to(self.device, non_blocking=True) for part in parts], dim=1)
            epoch, seed = self.order.epoch(step), self.order.seed
            # drawn again here rather than sent: it is cheap, and the same by construction
            parameters = self.views.draw_all(indices, epoch, self.count, seed, sizes)
            memory = _memory(self.count, len(indices), self.views.size, self.device)
            for v in range(self.count):
                self.views.colour(crops[v], parameters[v], out=memory[v])
            yield Batch(step, indices, memory.permute(0, 1, 4, 2, 3))

    def _keys(self, steps: range) -> Iterator[tuple[int, np.ndarray]]:
        for step in steps:
            indices = self.order.indices(step)
            for k in range(0, len(indices), CHUNK):
                yield step, indices[k : k + CHUNK]

    def _checked(self, part: Crops | TooManyBadImages) -> Crops:
        if isinstance(part, TooManyBadImages):
            raise part
        self._record.note(part.tried, part.bad)
        return part


def open_batches(
    source: Source,
    views: Views,
    *,
    batch: int,
    seed: int,
    device: Device = "cpu",
    rank: int = 0,
    world: int = 1,
    mode: Literal["auto", "resident", "streamed"] = "auto",
    workers: int | None = None,
    decode: Literal["exact", "fast"] = "exact",
    max_bad: float = 0.05,
    count: int = 2,
    max_bytes: int = MAX_BYTES,
) -> Resident | Streamed:
    """Batches of `count` views of `batch` images, all processes together, for process `rank` of `world`.

    auto: resident for images in memory already, and for files that all have one size and together take at most
    `max_bytes` decoded, unless they would fill more than half of what a GPU has free; else streamed. Raises ValueError
    where `batch` does not fit the images or the processes.
    """
    Order(len(source), batch, seed, rank, world)  # complains before anything is decoded
    common = {
        "batch": batch,
        "seed": seed,
        "device": device,
        "rank": rank,
        "world": world,
        "max_bad": max_bad,
        "count": count,
    }
    if mode != "streamed":
        loaded = load_images(source, max_bytes)
        if mode == "resident" or (loaded is not None and loaded.images.nbytes <= _room(device)):
            return Resident(source, views, **common, loaded=loaded)
    return Streamed(source, views, **common, workers=workers, decode=decode)


def _room(device: Device) -> float:
    """Bytes of images that a device takes, with room left for the network."""
    if torch.device(device).type != "cuda":
        return float("inf")
    return torch.cuda.mem_get_info(device)[0] / 2


def _memory(count: int, images: int, size: int, device: torch.device) -> Float[Tensor, "v b s s 3"]:
    """For views with the channels last in memory, as convolutions are fastest."""
    shape = (count, images, size, size, 3)
    if device.type == "cpu":  # numpy asks for huge pages; getting ordinary ones can cost as much as the views
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device)
