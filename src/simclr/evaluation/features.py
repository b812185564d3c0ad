"""Features of a frozen encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr.data.loading import CHUNK, loader
from simclr.data.source import Source
from simclr.data.survey import scale_source
from simclr.errors import DataError, Error, UnreadableImage
from simclr.runs.environment import has_processes
from simclr.views.preprocess import Preprocess


class Prepared(NamedTuple):
    """Prepared images of one chunk."""

    indices: Int64[np.ndarray, " c"]
    images: Float[Tensor, "c channels s s"]
    bad: list[UnreadableImage]


@dataclass(frozen=True)
class _Preparer:
    """Data set of prepared images by their indices, which worker processes can be given."""

    source: Source
    preprocess: Preprocess

    def __getitem__(self, indices: range) -> Prepared:
        size = self.preprocess.size
        kept, images, bad = [], [torch.empty(0, self.preprocess.channels, size, size)], []
        for i in indices:
            try:
                images.append(self.preprocess(self.source.read(i))[None])
                kept.append(i)
            except UnreadableImage as error:
                bad.append(error)
        return Prepared(np.array(kept, np.int64), torch.cat(images), bad)


def _chunks(start: int, stop: int) -> list[range]:
    return [range(k, min(k + CHUNK, stop)) for k in range(start, stop, CHUNK)]


class EvalBatches:
    """Evaluation batches (indices int64 (b,), images float32 (b, C, S, S)) in the order of the source.

    The images are read with the channels and the scaling of `preprocess`; DataError if they have other channels.
    `workers` processes decode them (0: this process); images in memory are prepared one batch at a time. An unreadable
    image has no row; `bad` holds its path and the reason once the iteration has passed it.
    """

    def __init__(self, source: Source, preprocess: Preprocess, batch: int = 256, workers: int = 0):
        self.source = scale_source(source, preprocess.low, preprocess.high)
        self.preprocess = preprocess
        self.batch = batch
        self.workers = workers
        self.bad: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[Int64[np.ndarray, " b"], Float[Tensor, "b c s s"]]]:
        n = len(self.source)
        starts = range(0, n, self.batch)
        if self.source.images is not None:
            for start in starts:
                part = self.source.images[start : start + self.batch]
                yield np.arange(start, start + len(part)), self.preprocess.batch(part)
            return
        stops = [min(start + self.batch, n) for start in starts]
        chunks = [_chunks(start, stop) for start, stop in zip(starts, stops, strict=True)]
        every = [key for keys in chunks for key in keys]
        prepared = iter(
            loader(
                _Preparer(self.source, self.preprocess),
                every,
                workers=min(self.workers, len(every)),
                prefetch=2 * len(chunks[0]),
                held=2 * len(chunks[0]),
                item_bytes=CHUNK * 4 * self.preprocess.channels * self.preprocess.size**2,
            )
        )
        for keys in chunks:
            parts: list[Prepared] = list(islice(prepared, len(keys)))
            self.bad |= {error.path: error.reason for part in parts for error in part.bad}
            indices = np.concatenate([part.indices for part in parts])
            if len(indices):
                yield indices, torch.cat([part.images for part in parts])


class Features(NamedTuple):
    """Features of a source, one row for each readable image in the order of the source; `extract` returns them on the
    CPU."""

    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"] | None
    indices: Int64[Tensor, " n"]
    bad: dict[str, str]
    """path and reason of each unreadable image"""

    def to(self, device: torch.device | str) -> "Features":
        """Return the same with features and labels on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return self._replace(features=self.features.to(device), labels=labels)


def extract(
    encoder: nn.Module,
    source: Source,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
    allow_none: bool = False,
) -> Features:
    """Return the features (N, D) float32 of every readable image. The encoder is set to evaluation mode, so neither its
    parameters nor its batch statistics change. Raises DataError if no image can be read, unless that is allowed."""
    return extract_all(
        [encoder], source, preprocess, device=device, batch=batch, workers=workers, allow_none=allow_none
    )[0]


@torch.inference_mode()
def extract_all(
    encoders: Sequence[nn.Module],
    source: Source,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
    allow_none: bool = False,
) -> list[Features]:
    """Return the features of several encoders, as `extract` does for one; each image is decoded once."""
    rows: list[list[Tensor]] = [[] for _ in encoders]
    types = [next((p.dtype for p in encoder.eval().parameters()), torch.float32) for encoder in encoders]
    indices = []
    batches = EvalBatches(source, preprocess, batch=batch, workers=workers)
    for index, images in batches:
        for encoder, dtype, features in zip(encoders, types, rows, strict=True):
            features.append(encoder(images.to(device, dtype, memory_format=torch.channels_last)).float().cpu())
        indices.append(torch.as_tensor(index))
    if not indices and allow_none:
        nothing = torch.empty(0, dtype=torch.int64)
        return [Features(torch.empty(0, 0), None, nothing, batches.bad) for _ in encoders]
    if not indices:
        raise DataError(source.name, "no image can be read", "simclr scan lists the reasons")
    kept = torch.cat(indices).long()
    labels = None if source.labels is None else torch.from_numpy(source.labels)[kept]
    return [Features(torch.cat(features), labels, kept, batches.bad) for features in rows]


def extract_together(
    encoders: Sequence[nn.Module], source: Source, preprocess: Preprocess, *, batch: int = 256, **options: Any
) -> list[Features]:
    """Return what `extract_all` does on every process of the process group, each of which computes a range of the
    images and must call this. Their batches are those of one process."""
    if not has_processes():
        return extract_all(encoders, source, preprocess, batch=batch, **options)
    rank, world, batches = dist.get_rank(), dist.get_world_size(), -(-len(source) // batch)
    start, stop = (min(batches * k // world * batch, len(source)) for k in (rank, rank + 1))
    own: list[tuple] | Error = []
    try:
        if start < stop:
            part = source.part(start, stop)
            features = extract_all(encoders, part, preprocess, batch=batch, allow_none=True, **options)
            own = [(f.features.numpy(), f.indices.numpy() + start, f.bad) for f in features]
    except Error as error:  # which all must meet
        own = error
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, own)
    if (error := next((other for other in everyone if isinstance(other, Error)), None)) is not None:
        raise error
    return [_joined(parts, source) for parts in zip(*filter(None, everyone), strict=True)]


def _joined(parts: Sequence[tuple], source: Source) -> Features:
    """Return the features of all images of a source from those of its parts, in order."""
    kept = torch.from_numpy(np.concatenate([indices for _, indices, _ in parts]))
    if not len(kept):
        raise DataError(source.name, "no image can be read", "simclr scan lists the reasons")
    features = torch.from_numpy(np.concatenate([features for features, indices, _ in parts if len(indices)]))
    labels = None if source.labels is None else torch.from_numpy(source.labels)[kept]
    return Features(features, labels, kept, {name: reason for *_, bad in parts for name, reason in bad.items()})
