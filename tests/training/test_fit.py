"""The training loop on a problem with a known answer."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from support.processes import in_processes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from simclr.errors import DataError, DivergedError, Interrupted, RunError, SettingError
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.training.fit import Parts, Schedule, fit

pytestmark = pytest.mark.slow


class Batch(NamedTuple):
    indices: np.ndarray
    x: torch.Tensor


class Batches:
    """Batches of ones; that of step `lost_at` holds no numbers."""

    storage = "resident"

    def __init__(self, delay=0.0, lost_at=None, bad=None):
        self.delay, self.lost_at, self.bad = delay, lost_at, bad or {}

    def __call__(self, steps):
        for step in steps:
            time.sleep(self.delay)
            yield Batch(np.zeros(4, np.int64), torch.full((4, 1), torch.nan if step == self.lost_at else 1.0))


@dataclass(frozen=True)
class Task:
    command: ClassVar[str] = "toy"
    name: str = "toy"


def toy(tmp_path, schedule, delay=0.0, lost_at=None, broken_at=None, processes=None, storage="resident", **hooks):
    """Least squares towards zero: w <- w (1 - lr), so that every step has a closed form."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fabric = Fabric(accelerator="cpu", devices=1)
    network, wrapped = fabric.setup(model, optimizer)

    def backward(batch):
        loss = network(batch.x).square().mean() / 2
        fabric.backward(loss)
        if broken_at is not None and len(run.metrics()) == broken_at:
            model.weight.grad.fill_(torch.inf)
        return loss.detach(), None

    run = Run.start(tmp_path, Task())
    batches = Batches(delay, lost_at)
    batches.storage = storage
    parts = Parts(model, wrapped, batches, backward, processes)
    try:
        return model, run, fit(run, fabric, parts, schedule, **hooks)
    finally:
        run.release()


def test_follows_the_schedule_to_the_letter(tmp_path):
    rates = [0.0, 0.5, 0.25, 0.1]
    model, run, last = toy(tmp_path, Schedule(steps=4, lr=lambda s: rates[s], seed=0, log_every=1))
    assert model.weight.item() == pytest.approx(np.prod([1 - r for r in rates]))
    assert [line["lr"] for line in run.metrics()] == rates
    assert last["step"] == 4
    assert run.restore()["step"] == 4


def test_evaluates_and_saves_on_schedule(tmp_path):
    seen = []
    schedule = Schedule(steps=7, lr=lambda s: 0.1, seed=0, log_every=100, save_every=3, evaluate_every=3)
    _, run, _ = toy(tmp_path, schedule, evaluate=lambda: seen.append(1) or {"knn_top1": 0.5})
    assert len(seen) == 2
    assert [line["step"] for line in run.metrics() if "knn_top1" in line] == [3, 6]
    assert torch.load(tmp_path / "checkpoints" / "previous.pt", weights_only=True)["step"] == 6


def test_reports_the_time_spent_waiting_for_data(tmp_path):
    _, _, last = toy(tmp_path, Schedule(steps=20, lr=lambda s: 0.1, seed=0), delay=0.02)
    waited = last["data_wait_percent"] / 100 * last["seconds"]
    assert waited >= 20 * 0.02 * 0.9
    assert last["data_wait_percent"] <= 100
    assert last["images_per_s"] == pytest.approx(80 / last["seconds"], rel=0.2)


def test_a_diverged_state_replaces_no_checkpoint(tmp_path):
    schedule = Schedule(steps=12, lr=lambda s: 0.1, seed=0, log_every=100, save_every=3)
    with pytest.raises(DivergedError):
        toy(tmp_path, schedule, lost_at=4)
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] == 3


def test_a_diverged_state_whose_last_loss_was_finite_replaces_no_checkpoint(tmp_path):
    schedule = Schedule(steps=12, lr=lambda s: 0.1, seed=0, log_every=1, save_every=3)
    with pytest.raises(DivergedError):
        toy(tmp_path, schedule, broken_at=5)
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] == 3


def stopped(rank, world, folder):
    """One of two processes that are asked to stop, of which the first saves slowly."""
    save = Run.save

    def slow(self, state):
        time.sleep(2.0 * self.writes)
        save(self, state)

    Run.save = slow
    os.environ.update(WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    fabric = Machine(accelerator="cpu", devices=world).launch()
    model = nn.Linear(1, 1, bias=False)
    network, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))

    def backward(batch):
        loss = network(batch.x).square().mean()
        fabric.backward(loss)
        if rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return loss.detach(), None

    schedule = Schedule(steps=9, lr=lambda s: 0.1, seed=0, log_every=1)
    run = Run.start(folder, Task(), writes=fabric.is_global_zero)
    try:
        fit(run, fabric, Parts(model, optimizer, Batches(bad={f"{rank}.jpg": "broken"}), backward), schedule)
    except Interrupted:
        return (folder / "checkpoints" / "last.pt").exists()


def test_no_process_leaves_before_the_checkpoint_is_written(tmp_path):
    assert in_processes(stopped, tmp_path) == [True, True]
    assert Run(tmp_path).bad == {"0.jpg": "broken", "1.jpg": "broken"}


class Stalled(Batches):
    """Batches of which the fourth never comes."""

    def __call__(self, steps):
        for step, batch in zip(steps, super().__call__(steps), strict=True):
            if step == 3:
                time.sleep(60)
            yield batch


def waiting(rank, world, folder):
    """One of two processes that wait for data when the first is asked to stop."""
    os.environ.update(WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    fabric = Machine(accelerator="cpu", devices=world).launch()
    model = nn.Linear(1, 1, bias=False)
    network, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))

    steps = []

    def backward(batch):
        loss = network(batch.x).square().mean()
        fabric.backward(loss)
        steps.append(batch)
        if rank == 0 and len(steps) == 3:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return loss.detach(), None

    schedule = Schedule(steps=9, lr=lambda s: 0.1, seed=0, log_every=1)
    run = Run.start(folder, Task(), writes=fabric.is_global_zero)
    start = time.perf_counter()
    with pytest.raises(Interrupted):
        fit(run, fabric, Parts(model, optimizer, Stalled(), backward), schedule)
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["step"]
    return saved if time.perf_counter() - start < 40 else -1


def test_a_request_reaches_all_processes_that_wait_for_data(tmp_path):
    assert in_processes(waiting, tmp_path) == [3, 3]


@pytest.mark.parametrize("change", [{"storage": "streamed"}, {"processes": 2}])
def test_a_run_resumes_under_the_circumstances_that_its_results_depend_on(tmp_path, change):
    toy(tmp_path, Schedule(steps=4, lr=lambda s: 0.1, seed=0), processes=1)
    with pytest.raises(SettingError) as error:
        toy(tmp_path, Schedule(steps=6, lr=lambda s: 0.1, seed=0), **{"processes": 1, **change})
    assert error.value.field == {"storage": "machine.storage", "processes": "machine.devices"}[next(iter(change))]


def test_a_checkpoint_from_before_circumstances_were_saved_resumes(tmp_path):
    _, run, _ = toy(tmp_path, Schedule(steps=4, lr=lambda s: 0.1, seed=0))
    state = run.restore()
    del state["circumstances"]
    run.save(state)
    assert toy(tmp_path, Schedule(steps=6, lr=lambda s: 0.1, seed=0), storage="streamed")[2]["step"] == 6


def test_a_run_that_ended_before_its_result_was_written_keeps_its_metrics(tmp_path):
    schedule = Schedule(steps=4, lr=lambda s: 0.1, seed=0)
    _, _, last = toy(tmp_path, schedule)
    _, _, again = toy(tmp_path, schedule)
    assert again == last
    with pytest.raises(RunError) as error:
        toy(tmp_path, Schedule(steps=3, lr=lambda s: 0.1, seed=0))
    assert error.value.path == str(tmp_path)


def noisy(folder, steps, masks):
    """Run a network with dropout, whose masks are added to a list."""
    model = nn.Linear(1, 1)
    fabric = Fabric(accelerator="cpu", devices=1)
    network, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def backward(batch):
        masks.append(F.dropout(torch.ones(16)))
        loss = (network(batch.x) * masks[-1]).square().mean()
        fabric.backward(loss)
        return loss.detach(), None

    schedule = Schedule(steps=8, lr=lambda s: 0.1, seed=3, save_every=steps)
    fit(Run.start(folder, Task()), fabric, Parts(model, optimizer, Batches(), backward), schedule)


def test_dropout_is_another_in_each_step_and_the_same_after_a_resumption(tmp_path, monkeypatch):
    whole, parts = [], []
    noisy(tmp_path / "whole", 8, whole)
    save = Run.save

    def save_and_stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    torch.manual_seed(99)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            noisy(tmp_path / "parts", 3, parts)
    assert len(parts) == 3
    torch.rand(7)  # the global generator of the new process is anywhere
    noisy(tmp_path / "parts", 3, parts)
    assert torch.equal(torch.stack(parts), torch.stack(whole))
    assert len({tuple(mask.tolist()) for mask in whole}) == 8


def test_a_decoding_process_that_dies_is_an_error_of_the_data_wherever_the_loop_is(tmp_path):
    """torch raises it in a handler of the signal."""

    def evaluate():
        workers = iter(DataLoader(range(9), batch_size=None, num_workers=1))
        os.kill(workers._workers[0].pid, signal.SIGKILL)
        time.sleep(30)
        return {}

    schedule = Schedule(steps=2, lr=lambda s: 0.1, seed=0, evaluate_every=1)
    with pytest.raises(DataError) as error:
        toy(tmp_path, schedule, evaluate=evaluate)
    assert error.value.path == "workers"
