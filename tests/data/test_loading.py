"""Items come in order, failures come through, and the thread ends with its reader."""

import os
import signal
import threading
import time

import pytest
import torch

from simclr.data.loading import _print_unless_reader_ended, loader, prefetch
from simclr.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")


def test_order_is_kept():
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []


def test_a_failure_is_raised_after_the_items_before_it():
    def failing():
        yield 1
        yield 2
        raise KeyError("three")

    seen = []
    with pytest.raises(KeyError, match="three"):
        seen.extend(prefetch(failing()))
    found = prefetch(failing())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(found)


def test_no_more_than_depth_items_are_made_in_advance():
    made = []
    taken = threading.Event()

    def counting():
        for k in range(10):
            made.append(k)
            yield k
            if k == 4:
                taken.set()

    items = prefetch(counting(), depth=3)
    assert next(items) == 0
    assert not taken.wait(0.3)  # 0 is taken, 1 to 3 wait, 4 is being handed over
    assert made == [0, 1, 2, 3, 4]
    assert list(items) == list(range(1, 10))


def test_the_thread_ends_when_its_reader_gives_up():
    before = threading.active_count()
    items = prefetch(iter(int, 1))
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before


class Tensors:
    """Item k is k and a tensor of k, in shared memory or not."""

    def __getitem__(self, k):
        return k, [torch.full((1000,), k)]


def is_shared(items):
    return [tensors[0].is_shared() for _, tensors in items]


def tensors_of(**options):
    keys = list(range(12))
    items = list(loader(Tensors(), keys, workers=2, prefetch=4, held=12, item_bytes=8000, **options))
    assert [k for k, _ in items] == keys
    assert all(torch.equal(tensors[0], torch.full((1000,), k)) for k, tensors in items)
    return items


def test_tensors_are_sent_through_pipes_if_there_is_too_little_shared_memory(monkeypatch):
    assert all(is_shared(tensors_of()))
    monkeypatch.setattr("simclr.data.loading._free_shared", lambda: 100_000.0)
    assert not any(is_shared(tensors_of()))


def test_a_tensor_is_sent_through_a_pipe_if_the_shared_memory_is_full_by_then(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert not any(is_shared(tensors_of(start_method="fork")))  # which inherits the function


class Silent:
    """Items of a storage that never answers."""

    def __getitem__(self, k):
        time.sleep(100)


class Fatal:
    """Items that end the process that reads them, as the kernel does if memory is short."""

    def __getitem__(self, k):
        os._exit(9)


# torch's loader may notice a dead worker once more while it is deleted
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("data", [Silent(), Fatal()])
def test_silent_and_dead_workers_are_noticed(data, monkeypatch):
    monkeypatch.setattr("simclr.data.loading.SILENCE", 2.0)
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        list(loader(data, range(4), workers=2, prefetch=4, held=1, item_bytes=8))
    assert error.value.path == "workers"
    assert time.monotonic() - start < 20


class GivenUp(Exception):
    pass


# an error that is raised in a callback of a weak reference is ignored: the next signal raises it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_ended_while_it_starts_is_no_failure():
    """The signal of a worker that ended raises an error wherever the process is; here a test would fail by it."""

    def give_up(number, frame):
        raise GivenUp

    items = loader(torch.arange(3), range(3), workers=1, prefetch=1, held=1, item_bytes=8, start_method="spawn")
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3, 1.0)  # a new process takes seconds to load torch
        with pytest.raises(GivenUp) as error:  # whose traceback keeps the iterator
            next(items)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.5)  # the process ends meanwhile
    assert error.value.__traceback__


def test_a_worker_whose_reader_is_interrupted_prints_nothing_and_other_errors_are_printed(capsys):
    for error in (ConnectionResetError(104, "reset"), OSError(28, "full")):
        _print_unless_reader_ended(type(error), error, None)
        assert ("Error" in capsys.readouterr().err) == (not isinstance(error, ConnectionError))
