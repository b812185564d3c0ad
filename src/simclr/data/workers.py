"""Worker processes: they decode, cut the crops of an image, and send them as bytes."""

import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from simclr.views import Views

from .decoding import Picture, UnreadableImage
from .order import Order, TooManyBadImages
from .sources import Source

# more workers than cores are the user's to choose, and torch would say so twice
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)

CHUNK = 8  # images a worker decodes at a time, so that eight large photographs at most are held by each
_SHARED = "/dev/shm"


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


def loader(
    data: Any,
    keys: Iterable,
    *,
    workers: int,
    ahead: int,
    item_bytes: int,
    pin: bool = False,
    start_method: str | None = None,
) -> DataLoader:
    """`data[key]` for each key, in order, made by `workers` processes (0: by this one).

    About `ahead` keys are worked on in advance, each of which makes at most `item_bytes` in shared memory.
    """
    options: dict[str, Any] = {}
    if workers:
        factor = max(2, -(-ahead // workers))
        sharing = dist.get_world_size() if dist.is_initialized() else 1  # all may be on this node
        fits = int(0.8 * _free_shared() / (item_bytes * workers * sharing))
        if fits < 1:
            raise ValueError(
                f"workers is {workers}; their crops need {workers * item_bytes / 1e6:.0f} MB in {_SHARED}, which has "
                f"{_free_shared() / 1e6:.0f} MB free: allowed are fewer workers, or more of it (docker: --shm-size)"
            )
        options = {"prefetch_factor": min(factor, fits), "multiprocessing_context": start_method}
    return DataLoader(
        data,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        generator=torch.Generator(),  # else the loader would draw from the global generator
        worker_init_fn=_heed_parent_alone,
        **options,
    )


def _heed_parent_alone(worker: int) -> None:
    """Leave signals to the whole group, as of SLURM, systemd and Ctrl-C, to the training process, which saves and then
    ends its workers: they would have taken it down with them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_end, daemon=True).start()


def _await_end() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _unchanged(item: Any) -> Any:
    return item


def _free_shared() -> float:
    if not os.path.isdir(_SHARED):
        return float("inf")
    status = os.statvfs(_SHARED)
    return float(status.f_bavail * status.f_frsize)
