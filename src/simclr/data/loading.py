"""Loading of images by worker processes, and prefetching."""

import os
import queue
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from simclr.errors import DataError

# the user may choose more workers than cores; torch would warn of it twice
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)

CHUNK = 8  # images a worker decodes at a time, so that eight large photographs at most are held by each
SILENCE = 300.0  # seconds without an item from any worker, after which they count as dead
_SHARED = "/dev/shm"
_LEAVE = 1.0  # seconds to wait for the thread of an abandoned iteration, which may itself wait for a stalled source

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield items, of which up to `depth` are computed in advance by a thread.

    An exception of the thread is raised here, after the items before it. When the iteration is abandoned, the thread
    ends with its current item, which is not waited for longer than a second.
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
        thread.join(_LEAVE)


def loader(
    data: Any,
    keys: Iterable,
    *,
    workers: int,
    prefetch: int,
    held: int,
    item_bytes: int,
    pin: bool = False,
    start_method: str | None = None,
) -> Iterator[Any]:
    """Yield `data[key]` for each key, in order, computed by `workers` processes (0: by this process).

    About `prefetch` keys are computed in advance; the reader keeps up to `held` items. Each item needs at most
    `item_bytes` of shared memory. Where there is too little of it, as in a container with Docker's 64 MB, tensors are
    sent through pipes, which takes longer. Raises DataError if a worker dies, or if none sends anything for SILENCE
    seconds.
    """
    options: dict[str, Any] = {}
    if workers:
        factor = max(2, -(-prefetch // workers))
        sharing = dist.get_world_size() if dist.is_initialized() else 1  # all may be on this node
        # each item in shared memory takes a descriptor
        items = min(0.8 * _free_shared() / (item_bytes * sharing), _free_descriptors()) - held
        has_memory = items >= workers
        factor = min(factor, int(items // workers)) if has_memory else factor
        data = _Sender(data, has_memory)
        options = {"prefetch_factor": factor, "multiprocessing_context": start_method, "timeout": SILENCE}
    loaded = DataLoader(
        data,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        generator=torch.Generator(),  # else the loader would draw from the global generator
        worker_init_fn=_start_worker,
        **options,
    )
    iterator: Any = iter(loaded)
    try:
        for item in iterator:
            if isinstance(item, DataError):
                raise item
            yield _replace(item, _Sent, lambda sent: torch.from_numpy(sent.array)) if workers else item
    except RuntimeError as error:
        if (failure := failure_of_workers(error)) is not None:
            raise failure from None
        raise
    finally:
        if getattr(iterator, "_worker_pids_set", False):  # torch would take one that is starting for dead
            signal_handling._remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
        for worker in getattr(iterator, "_workers", ()):  # torch would wait five seconds for each one that is busy
            worker.terminate()


def failure_of_workers(error: BaseException) -> DataError | None:
    """Return what torch's loader reports of its worker processes as a DataError; None for any other error. The death of
    one is raised by a signal handler, wherever this process is."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    if "DataLoader timed out" in text:
        problem = f"no images arrived from the worker processes for {SILENCE:.0f} s"
        return DataError("workers", problem, "Check the storage of the images")
    if "DataLoader worker" in text:
        problem = f"a worker process ended unexpectedly ({' '.join(text.split())})"
        return DataError("workers", problem, "Often memory is short; try fewer --workers")
    return None


class _Sent(NamedTuple):
    """A tensor on its way through a pipe."""

    array: np.ndarray


class _Sender:
    """Data set whose tensors are put in shared memory, or, if there is too little, sent through the pipe of the worker.

    Left to torch, a tensor that does not fit is lost in a thread of the worker, and its reader waits for ever.
    """

    def __init__(self, data: Any, has_memory: bool):
        self.data, self.has_memory = data, has_memory

    def __getitem__(self, key: Any) -> Any:
        try:
            item = self.data[key]
        except DataError as error:  # a file that holds many images; what is raised, torch would wrap in its traceback
            return error
        if self.has_memory:
            try:
                return _replace(item, torch.Tensor, torch.Tensor.share_memory_)
            except (RuntimeError, OSError):  # others have used the memory meanwhile
                pass
        return _replace(item, torch.Tensor, lambda tensor: _Sent(tensor.numpy()))


def _replace(item: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return an item with `function` of all values of a kind in it and in the tuples and lists inside."""
    if isinstance(item, kind):
        return function(item)
    if isinstance(item, tuple | list):
        values = [_replace(value, kind, function) for value in item]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    return item


def _start_worker(worker: int) -> None:
    """Leave signals to the whole process group, as sent by SLURM, systemd and Ctrl-C, to the training process.

    It saves a checkpoint and then ends its workers; workers that end by themselves would end it too early.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _print_unless_reader_ended
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_end, daemon=True).start()


def _print_unless_reader_ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error, unless it is that of a thread that sends a tensor and whose reader was interrupted."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


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
