"""Loading of images with threads and worker processes, and prefetching."""

import os
import queue
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from simclr.data.source import Source
from simclr.errors import UnreadableImage
from simclr.runs.environment import cores

# more workers than cores are the user's to choose, and torch would say so twice
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)

CHUNK = 8  # images a worker decodes at a time, so that eight large photographs at most are held by each
_SHARED = "/dev/shm"

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, of which up to `depth` are made in advance by a thread.

    An exception of the thread is raised here, after the items before it. When the iteration is given up, the
    thread ends with the item that it is making.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stop.is_set():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


MAX_BYTES = 2 << 30  # largest size of a decoded data set that is kept in memory of its own accord
_BLOCK = 64  # images a thread decodes at a time


class Loaded(NamedTuple):
    images: UInt8[np.ndarray, "n h w 3"]
    """decoded images, zeros where one is unreadable"""
    bad: dict[int, UnreadableImage]


def load_images(source: Source, max_bytes: int = MAX_BYTES) -> Loaded | None:
    """Decode a whole source, by threads; None if its images differ in size or take more than `max_bytes`.

    Images that are in memory already are taken as they are, whatever they take.
    """
    if source.images is not None:
        return Loaded(source.images, {})
    readable = (image for i in range(len(source)) if isinstance(image := try_read(source, i), np.ndarray))
    first = next(readable, None)
    if first is None or first.nbytes * len(source) > max_bytes:
        return None
    images = np.zeros((len(source), *first.shape), np.uint8)

    def fill(start: int) -> dict[int, UnreadableImage] | None:
        bad = {}
        for i in range(start, min(start + _BLOCK, len(source))):
            image = try_read(source, i)
            if isinstance(image, UnreadableImage):
                bad[i] = image
            elif image.shape == first.shape:
                images[i] = image
            else:
                return None
        return bad

    bad: dict[int, UnreadableImage] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for found in pool.map(fill, range(0, len(source), _BLOCK)):
            if found is None:
                pool.shutdown(cancel_futures=True)
                return None
            bad |= found
    return Loaded(images, bad)


def try_read(source: Source, i: int) -> np.ndarray | UnreadableImage:
    """Image i, or why it cannot be read."""
    try:
        return source.read(i)
    except UnreadableImage as error:
        return error


def loader(
    data: Any,
    keys: Iterable,
    *,
    workers: int,
    prefetch: int,
    item_bytes: int,
    pin: bool = False,
    start_method: str | None = None,
) -> DataLoader:
    """`data[key]` for each key, in order, made by `workers` processes (0: by this one).

    About `prefetch` keys are worked on in advance, each of which makes at most `item_bytes` in shared memory.
    """
    options: dict[str, Any] = {}
    if workers:
        factor = max(2, -(-prefetch // workers))
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
