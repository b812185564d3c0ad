"""Features of a frozen encoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr.data.loading import CHUNK, loader
from simclr.data.source import Source
from simclr.errors import UnreadableImage
from simclr.views.preprocess import Preprocess


class Prepared(NamedTuple):
    indices: Int64[np.ndarray, " c"]
    images: Float[Tensor, "c 3 s s"]
    bad: list[UnreadableImage]


@dataclass(frozen=True)
class _Preparer:
    """From indices to prepared images: a data set that worker processes can be given."""

    source: Source
    preprocess: Preprocess

    def __getitem__(self, indices: range) -> Prepared:
        kept, images, bad = [], [torch.empty(0, 3, self.preprocess.size, self.preprocess.size)], []
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
    """Iterates over (indices int64 (b,), images float32 (b, 3, S, S)) in the order of the source.

    An unreadable image has no row; `bad` holds its path and the reason once the iteration is past it.
    """

    def __init__(self, source: Source, preprocess: Preprocess, batch: int, workers: int):
        self.source = source
        self.preprocess = preprocess
        self.batch = batch
        self.workers = workers
        self.bad: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[Int64[np.ndarray, " b"], Float[Tensor, "b 3 s s"]]]:
        n = len(self.source)
        starts = range(0, n, self.batch)
        if self.source.images is not None:
            for start in starts:
                part = self.source.images[start : start + self.batch]
                yield np.arange(start, start + len(part)), self.preprocess.batch(part)
            return
        stops = [min(start + self.batch, n) for start in starts]
        chunks = [_chunks(start, stop) for start, stop in zip(starts, stops, strict=True)]
        prepared = iter(
            loader(
                _Preparer(self.source, self.preprocess),
                [key for keys in chunks for key in keys],
                workers=self.workers,
                prefetch=2 * len(chunks[0]),
                item_bytes=CHUNK * 12 * self.preprocess.size**2,
            )
        )
        for keys in chunks:
            parts: list[Prepared] = list(islice(prepared, len(keys)))
            self.bad |= {error.path: error.reason for part in parts for error in part.bad}
            indices = np.concatenate([part.indices for part in parts])
            if len(indices):
                yield indices, torch.cat([part.images for part in parts])


def eval_batches(source: Source, preprocess: Preprocess, batch: int = 256, workers: int = 0) -> EvalBatches:
    """Every image of a source, prepared by `preprocess`, in batches of `batch`; `workers` processes decode, 0 for none
    but this one. Images in memory are prepared a batch at a time."""
    return EvalBatches(source, preprocess, batch, workers)


class Features(NamedTuple):
    """One row an image that could be read, in the order of the source; as `extract` gives them, on the CPU."""

    features: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"] | None
    indices: Int64[Tensor, " n"]
    bad: dict[str, str]  # path -> reason of the images left out

    def to(self, device: torch.device | str) -> "Features":
        """The same with features and labels on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return self._replace(features=self.features.to(device), labels=labels)


@torch.inference_mode()
def extract(
    encoder: nn.Module,
    source: Source,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch: int = 256,
    workers: int = 0,
) -> Features:
    """Features (N, D) float32 of every readable image. The encoder is put into evaluation mode, so neither its
    parameters nor its batch statistics change."""
    encoder.eval()
    dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
    rows, indices = [], []
    batches = eval_batches(source, preprocess, batch=batch, workers=workers)
    for index, images in batches:
        images = images.to(device, dtype, memory_format=torch.channels_last)
        rows.append(encoder(images).float().cpu())
        indices.append(torch.as_tensor(index))
    if not rows:
        raise ValueError(f"{source.name}: no image can be read")
    kept = torch.cat(indices).long()
    labels = None if source.labels is None else torch.from_numpy(source.labels)[kept]
    return Features(torch.cat(rows), labels, kept, batches.bad)
