import contextlib
import time

import torch
import torch.distributed as dist
from support.processes import in_processes

from simclr.training import peers
from simclr.training.peers import Peers


def fast(monkeypatch, silence=0.3):
    monkeypatch.setattr(peers, "BEAT", 0.02)
    monkeypatch.setattr(peers, "SILENCE", silence)
    monkeypatch.setattr(peers, "GRACE", 0.05)
    ended = []
    monkeypatch.setattr(peers.os, "_exit", ended.append)
    return ended


def wait_until(condition, seconds=10):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    return condition()


def group(size):
    store = dist.HashStore()
    return [Peers("runs/x", store, rank, size) for rank in range(size)]


def test_processes_that_live_or_leave_are_not_missed(monkeypatch):
    ended = fast(monkeypatch, silence=0.2)
    first, second, third = group(3)
    with first, second:
        with third:
            assert first.find_lost(0.2) is None
        assert first.find_lost(0.4) is second.find_lost(0.1) is None
    assert ended == []


def test_a_process_that_dies_is_named_and_ends_the_others(monkeypatch, capsys):
    ended = fast(monkeypatch)
    first, second, third = group(3)
    with first, second:
        third.__enter__()
        assert third._ended.set() is None  # killed: it gives no more signs and does not leave
        assert first.find_lost(0.2) == second.find_lost(0.2) == 2
        assert wait_until(lambda: len(ended) == 2)
    assert ended == [1, 1] and capsys.readouterr().err.count("process 2 of 3") == 2


def test_the_death_of_the_first_process_ends_the_others(monkeypatch):
    ended = fast(monkeypatch)
    first, second, third = group(3)
    with second, third:
        first.__enter__()
        first._ended.set()
        assert second.find_lost(0.2) == 0
        assert wait_until(lambda: len(ended) == 2)


def test_a_single_process_has_no_peers():
    with Peers("runs/x") as alone:
        assert not alone.has_peers


def _fail_in_the_second_training(rank, world):
    """Return the process that the first one misses after the second one has left a training by an error."""
    peers.BEAT, missed = 0.02, None
    with Peers("runs/first"):
        dist.barrier()
    with contextlib.suppress(KeyError), Peers("runs/second") as second:
        dist.barrier()
        if rank == 1:
            raise KeyError
        time.sleep(0.2)
        missed = second.find_lost(0.3)
    dist.barrier()
    return torch.tensor(-1 if missed is None else missed)


def test_each_training_of_a_process_is_watched_and_an_error_is_no_orderly_end():
    assert [int(missed) for missed in in_processes(_fail_in_the_second_training)] == [1, -1]
