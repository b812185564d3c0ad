"""Batches of views for training, from images on the device or from worker processes."""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_start_method
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.data.in_memory import MAX_BYTES, Loaded, load_images
from simclr.data.loading import CHUNK, loader, prefetch
from simclr.data.source import Source
from simclr.errors import SettingError, TooManyBadImages
from simclr.runs.environment import cores
from simclr.training.ahead import Ahead, is_copied
from simclr.training.crops import CropDataset, Crops, Decoded, decode_once, draw_groups
from simclr.training.sampler import BadImages, BatchSampler
from simclr.training.view_memory import at_once, channels_first, empty_views, of_policies, views_of
from simclr.views import Backend, ViewParameters, Views, by_policy, by_size
from simclr.views.torch_backend import to_device_async

Device = torch.device | str
DECODED_CHUNK = 64  # decoded images that a worker cuts at a time, at most
ITEM_BYTES = 1 << 20  # of their crops


class Batch(NamedTuple):
    """One process's images of a batch: b = batch / world."""

    step: int
    indices: Int64[np.ndarray, " b"]
    """the images, after unreadable ones were replaced"""
    views: tuple[Float[Tensor, "_ b c _ _"], ...]
    """views of one size together, the sizes as in `by_size`; in [0, 1], each image with its channels last in memory"""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How images are read and kept."""

    storage: Literal["auto", "resident", "streamed"] = "auto"
    """resident: decoded images on the device; streamed: decoded by worker processes in every epoch; auto: resident for
    images in memory already, and for files of one size that fit, else streamed from files that are decoded once if they
    fit, if worker processes are forked and decoding is exact"""
    workers: int | None = None
    """number of decoding processes, 0 for this process alone; default: one per CPU core"""
    decode: Literal["exact", "fast"] = "exact"
    """fast: streamed JPEG files are read at a half, a quarter or an eighth of their side if every crop still has the
    pixels of a view"""
    max_bad: float = 0.05
    """maximum fraction of unreadable images"""
    max_bytes: int = MAX_BYTES
    """maximum size of decoded files that auto keeps resident"""
    max_decoded: int = 2 * MAX_BYTES
    """maximum size of decoded files of other sizes that auto keeps in memory, if it is at most a quarter of what is
    free"""
    compile: bool = False
    """views on a GPU are computed by functions that torch.compile makes"""
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    """how worker processes are started; default: Python's on this system"""


class Resident:
    """Batches from images that lie on the device and are cropped there.

    Calling it with a range of steps yields their batches; a batch depends on nothing but its step. `bad` maps the path
    of every unreadable image to the reason.
    """

    storage = "resident"

    def __init__(
        self,
        source: Source,
        policies: Sequence[Views],
        sampler: BatchSampler,
        loading: Loading | None = None,
        device: Device = "cpu",
        loaded: Loaded | None = None,
    ):
        """`loaded` are the decoded images, if they were loaded before. Raises TooManyBadImages."""
        self.sampler, self.policies = sampler, tuple(policies)
        loading = loading or Loading()
        loaded = loaded or _load_resident(source, loading)
        record = BadImages(source, loading.max_bad)
        record.record(np.arange(len(source)), list(loaded.bad.values()))
        self.bad = record.reasons
        self._unreadable = np.isin(np.arange(len(source)), list(loaded.bad))
        self._images = torch.from_numpy(loaded.images).to(device)
        self._backend = _backend(loading, self._images.device)

    def with_policies(self, policies: Sequence[Views]) -> "Resident":
        """Return batches of the same images with other views."""
        other = copy.copy(self)
        other.policies = tuple(policies)
        return other

    def __call__(self, steps: range) -> Iterator[Batch]:
        for step, indices, parameters in prefetch(self._draw(steps)):
            images = self._images[to_device_async(indices, self._images.device)]
            views = views_of(images, self.policies, parameters, self._backend)
            yield Batch(step, indices, channels_first(views))

    def _draw(self, steps: range) -> Iterator[tuple[int, np.ndarray, list[ViewParameters]]]:
        size = tuple(self._images.shape[1:3])
        for step in steps:
            epoch, indices = self.sampler.epoch(step), self.sampler.indices(step).copy()
            for k in np.flatnonzero(self._unreadable[indices]):
                others = self.sampler.replacements(step, int(indices[k]))
                indices[k] = next(i for i in others if not self._unreadable[i])
            yield step, indices, draw_groups(self.policies, indices, epoch, self.sampler.seed, size)


class Streamed:
    """Batches from worker processes, which decode an image once for all crops of it, or take it from `decoded`.

    Crops are sent to this process as uint8, or as float32 if the images are scaled; colour operations run here, on the
    device. Calling it with a range of steps yields their batches; a batch depends on nothing but its step. `bad` maps
    the path of every image found unreadable so far to the reason.
    """

    storage = "streamed"

    def __init__(
        self,
        source: Source,
        policies: Sequence[Views],
        sampler: BatchSampler,
        loading: Loading | None = None,
        device: Device = "cpu",
        decoded: Decoded | None = None,
    ):
        """`decoded` are all images, if they were decoded before."""
        loading = loading or Loading()
        self.sampler, self.policies = sampler, tuple(policies)
        self.device = torch.device(device)
        self._backend = _backend(loading, self.device)
        self.workers = cores() if loading.workers is None else loading.workers
        self.start_method = loading.start_method
        self._crops = CropDataset(source, self.policies, sampler, loading.decode, decoded)
        self._is_copied = is_copied(source)
        self._record = BadImages(source, loading.max_bad)
        self.bad = self._record.reasons

    def with_policies(self, policies: Sequence[Views]) -> "Streamed":
        """Return batches of the same images with other views."""
        other = copy.copy(self)
        other.policies = tuple(policies)
        other._crops = replace(self._crops, policies=other.policies)
        return other

    def __call__(self, steps: range) -> Iterator[Batch]:
        """Yield the batches of `steps`. Raises TooManyBadImages once too many of the images seen are unreadable."""
        chunk = self._chunk
        per_step = -(-self.sampler.local // chunk)
        source = self._crops.source
        if (
            self.workers and source.scaling is None
        ):  # compile the crop once, rather than in each worker at the same time
            self.policies[0].crop(np.zeros((1, 1, 3), np.uint8), np.array([0, 0, 1, 1]), False)
        chunks = iter(
            loader(
                self._crops,
                self._keys(steps, chunk),
                workers=self.workers,
                prefetch=2 * per_step,
                held=2,
                item_bytes=chunk * self._image_bytes,
                pin=self.device.type == "cuda",
                start_method=self.start_method,
            )
        )
        for step in steps:
            indices, sizes, crops = self._gathered(islice(chunks, per_step))
            # drawn again here rather than sent: it is cheap, and the same by construction
            parameters = draw_groups(self.policies, indices, self.sampler.epoch(step), self.sampler.seed, sizes)
            memory = empty_views(self.policies, len(indices), source.channels, self.device)
            parts = (of_policies(group, self.policies) for group in (crops, memory))
            for (count, policy), drawn, cut, out in zip(by_policy(self.policies), parameters, *parts, strict=True):
                for _, rows in at_once(count, out):
                    policy.colour(cut[rows], drawn[rows], self._backend, out[rows], "channels last")
            yield Batch(step, indices, channels_first(memory))

    @property
    def _chunk(self) -> int:
        """Return how many images are cut at a time: few if a worker holds them; more cost less for each, as long as
        their crops are small."""
        return CHUNK if self._crops.decoded is None else min(max(CHUNK, ITEM_BYTES // self._image_bytes), DECODED_CHUNK)

    @property
    def _image_bytes(self) -> int:
        return sum(self._crops.pixel_bytes * policy.size**2 for policy in self.policies)

    def _keys(self, steps: range, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
        ahead = Ahead(self._crops.source, self.sampler, steps) if self._is_copied and steps else None
        try:
            for step in steps:
                if ahead is not None:
                    ahead.reach(step)
                indices = self.sampler.indices(step)
                for k in range(0, len(indices), chunk):
                    yield step, indices[k : k + chunk]
        finally:
            if ahead is not None:
                ahead.end()

    def _gathered(self, parts: Iterator[Crops | TooManyBadImages]) -> tuple[np.ndarray, np.ndarray, list[Tensor]]:
        """Return indices, sizes and crops of a batch. Each part is copied as it arrives: while it is held in shared
        memory, it takes a file descriptor, of which a process has 1024 as a rule."""
        local = self.sampler.local
        indices, sizes = np.empty(local, np.int64), np.empty((local, 2), np.int64)
        channels, dtype = self._crops.form
        crops = [
            torch.empty(count, local, size, size, channels, dtype=getattr(torch, dtype), device=self.device)
            for count, size in by_size(self.policies)
        ]
        start = 0
        for part in parts:
            if isinstance(part, TooManyBadImages):
                raise part
            self._record.record(part.tried, part.bad)
            rows = slice(start, start := start + len(part.indices))
            indices[rows], sizes[rows] = part.indices, part.sizes
            for group, cut in zip(crops, part.crops, strict=True):
                group[:, rows].copy_(cut, non_blocking=True)
        return indices, sizes, crops


class Phases:
    """Batches whose views change in the course of a training: each phase has policies of its own."""

    def __init__(self, batches: Resident | Streamed, phases: Sequence[tuple[int, Sequence[Views]]]) -> None:
        """`phases` are the policies with the step at which they begin, the first one at 0."""
        self.storage, self.bad, self.sampler = batches.storage, batches.bad, batches.sampler
        starts = [start for start, _ in phases]
        parts = (batches.with_policies(policies) for _, policies in phases)
        self._parts = list(zip(starts, [*starts[1:], sys.maxsize], parts, strict=True))

    def __call__(self, steps: range) -> Iterator[Batch]:
        for start, stop, batches in self._parts:
            if part := range(max(steps.start, start), min(steps.stop, stop)):
                yield from batches(part)


def open_batches(
    source: Source,
    policies: Sequence[Views],
    sampler: BatchSampler,
    loading: Loading | None = None,
    device: Device = "cpu",
) -> Resident | Streamed:
    """Return the batches of `sampler`, with one view of each image for each policy."""
    loading = loading or Loading()
    if loading.storage == "resident":
        return Resident(source, policies, sampler, loading, device)
    if loading.storage == "auto":
        loaded = load_images(source, loading.max_bytes)
        if loaded is not None and loaded.images.nbytes <= _memory_for_images(device):
            return Resident(source, policies, sampler, loading, device, loaded)
        # worker processes that are not forked would each copy the images
        is_shared = loading.workers == 0 or (loading.start_method or get_start_method()) == "fork"
        if is_shared and loading.decode == "exact" and loaded is None:
            decoded = decode_once(source, loading.max_decoded)
            return Streamed(source, policies, sampler, loading, device, decoded)
    return Streamed(source, policies, sampler, loading, device)


def _load_resident(source: Source, loading: Loading) -> Loaded:
    loaded = load_images(source, loading.max_bytes)
    if loaded is None:
        raise SettingError(
            "machine.storage", f"auto or streamed for {source.name}, whose images differ in size or are too many",
            "resident",
        )  # fmt: skip
    return loaded


def _memory_for_images(device: Device) -> float:
    """Return how many bytes of images a device takes: half of a GPU's free memory, which leaves the rest for the
    network."""
    if torch.device(device).type != "cuda":
        return float("inf")
    return torch.cuda.mem_get_info(device)[0] / 2


def _backend(loading: Loading, device: torch.device) -> Backend:
    return "compiled" if loading.compile and device.type == "cuda" else "auto"
