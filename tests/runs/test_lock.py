"""Lock of a run folder: one process writes, its end frees the folder, worker processes do not hold it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simclr.errors import RunError
from simclr.runs import lock
from simclr.runs.lock import RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from simclr.runs.lock import RunLock
held = RunLock(Path(sys.argv[1]))
held.acquire()
if os.fork() == 0:  # a worker, which outlives its parent
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(RunError) as refused:
        RunLock(tmp_path).acquire()
    assert refused.value.path == str(tmp_path)
    assert str(holder.pid) in refused.value.problem


def test_the_death_of_the_holder_frees_the_folder_though_its_workers_live(tmp_path, holder):
    holder.kill()
    holder.wait()
    RunLock(tmp_path).acquire()


def test_the_same_process_is_refused_until_it_releases(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    with pytest.raises(RunError):
        second.acquire()
    first.release()
    second.acquire()


@pytest.fixture
def without_locks(monkeypatch):
    def unsupported(file, operation):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", unsupported)


def test_without_kernel_locks_a_lease_is_held_by_signs_of_life(tmp_path, without_locks, monkeypatch):
    alive = {"host": "elsewhere", "process": 7, "time": time.time()}
    Path(tmp_path / lock.NAME).write_text(json.dumps(alive))
    with pytest.raises(RunError):
        RunLock(tmp_path).acquire()
    Path(tmp_path / lock.NAME).write_text(json.dumps({**alive, "time": time.time() - 2 * lock.STALE}))
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    taken = RunLock(tmp_path)
    taken.acquire()
    first = json.loads((tmp_path / lock.NAME).read_text())["time"]
    deadline = time.time() + 10
    while json.loads((tmp_path / lock.NAME).read_text())["time"] == first and time.time() < deadline:
        time.sleep(0.02)
    renewed = json.loads((tmp_path / lock.NAME).read_text())
    assert renewed["time"] > first and renewed["process"] == os.getpid()
    taken.release()


def test_a_lease_of_a_dead_process_on_this_host_has_lapsed(tmp_path, without_locks):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = {"host": os.uname().nodename, "process": dead.pid, "time": time.time()}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    RunLock(tmp_path).acquire()
