"""Loading of images by threads and worker processes, and prefetching."""

import os
import queue
import resource
import signal
import sys
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
from simclr.errors import SettingError, UnreadableImage
from simclr.runs.environment import cores

# the user may choose more workers than cores; torch would warn of it twice
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)

CHUNK = 8  # images a worker decodes at a time, so that eight large photographs at most are held by each
_SHARED = "/dev/shm"

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield items, of which up to `depth` are computed in advance by a thread.

    An exception of the thread is raised here, after the items before it. When the iteration is abandoned, the thread
    ends with its current item.
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
        except BaseException as error:  # every exception is raised in the waiting thread
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


MAX_BYTES = 2 << 30  # maximum size of a decoded data set that is kept in memory by default
_BLOCK = 64  # images a thread decodes at a time


class Loaded(NamedTuple):
    """All images of a source in memory."""

    images: UInt8[np.ndarray, "n h w 3"]
    """decoded images, zeros for unreadable ones"""
    bad: dict[int, UnreadableImage]


def load_images(source: Source, max_bytes: int = MAX_BYTES) -> Loaded | None:
    """Decode a whole source with threads; return None if its images differ in size or need more than `max_bytes`.

    Images that are in memory already are returned unchanged, regardless of their size.
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
        for errors in pool.map(fill, range(0, len(source), _BLOCK)):
            if errors is None:
                pool.shutdown(cancel_futures=True)
                return None
            bad |= errors
    return Loaded(images, bad)


def try_read(source: Source, i: int) -> np.ndarray | UnreadableImage:
    """Return image i, or the error if it is unreadable."""
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
    """Return a loader of `data[key]` for each key, in order, computed by `workers` processes (0: by this process).

    About `prefetch` keys are computed in advance, each of which needs at most `item_bytes` of shared memory.
    """
    options: dict[str, Any] = {}
    if workers:
        factor = max(2, -(-prefetch // workers))
        sharing = dist.get_world_size() if dist.is_initialized() else 1  # all may be on this node
        fits = int(0.8 * _free_shared() / (item_bytes * workers * sharing))
        if fits < 1:
            raise SettingError(
                "workers",
                f"lower, since {workers * item_bytes / 1e6:.0f} MB are needed in {_SHARED}, which has "
                f"{_free_shared() / 1e6:.0f} MB free",
                workers,
                "Or increase the shared memory (docker: --shm-size)",
            )
        factor = min(factor, fits, max(1, _free_descriptors() // workers))  # one for each item in shared memory
        options = {"prefetch_factor": factor, "multiprocessing_context": start_method}
    return DataLoader(
        data,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        generator=torch.Generator(),  # else the loader would draw from the global generator
        worker_init_fn=_ignore_signals_of_others,
        **options,
    )


def _ignore_signals_of_others(worker: int) -> None:
    """Leave signals to the whole process group, as sent by SLURM, systemd and Ctrl-C, to the training process.

    It saves a checkpoint and then ends its workers; workers that end by themselves would end it too early.
    """
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


def _free_descriptors() -> int:
    """Return how many files this process may still open, less a reserve."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 256
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - used - 256


def _free_shared() -> float:
    if not os.path.isdir(_SHARED):
        return float("inf")
    status = os.statvfs(_SHARED)
    return float(status.f_bavail * status.f_frsize)
