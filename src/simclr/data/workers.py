"""Worker processes: they decode, cut the crops of an image, and send them as bytes."""

import os
import signal
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from simclr.views import Views

from .decoding import UnreadableImage
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
        indices, images, sizes, bad = tried.copy(), [], np.empty((len(tried), 2), np.int64), []
        try:
            for k, index in enumerate(tried):
                indices[k], image, sizes[k] = self._readable(step, int(index), bad)
                images.append(image)
        except TooManyBadImages as error:  # handed over, since a loader wraps what is raised in its traceback
            return TooManyBadImages(f"{self.source.name}: {error}; the last was {bad[-1]}")
        read = np.array([image.shape[:2] for image in images], np.int64)
        crops = np.empty((self.count, len(images), self.views.size, self.views.size, 3), np.uint8)
        drawn = self.views.draw_all(indices, self.order.epoch(step), self.count, self.order.seed, sizes)
        for v, parameters in enumerate(one.resized(read) for one in drawn):
            for k, image in enumerate(images):
                crops[v, k] = self.views.crop(image, parameters, k)
        return Crops(tried, indices, sizes, torch.from_numpy(crops), bad)

    def _readable(
        self, step: int, index: int, bad: list[UnreadableImage]
    ) -> tuple[int, UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
        """The first image that can be read of `index` and its replacements, and its size; the others go to `bad`."""
        others = self.order.replacements(step, index)
        while True:
            try:
                return index, *self._read(step, index)
            except UnreadableImage as error:
                bad.append(error)
                index = next(others)

    def _read(self, step: int, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
        if self.decode == "exact":
            image = self.source.read(index)
            return image, image.shape[:2]

        def shrink(size: tuple[int, int]) -> int:
            if min(size) < 2 * self.views.size:
                return 1
            drawn = self.views.draw_all(np.array([index]), self.order.epoch(step), self.count, self.order.seed, size)
            spare = min(int(one.crop[0, 2:].min()) for one in drawn) // self.views.size
            return max(part for part in (1, 2, 4, 8) if part <= max(spare, 1))

        return self.source.read_reduced(index, shrink)


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
