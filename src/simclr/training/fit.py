"""Training loop: the only one of the package."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.data.loading import failure_of_workers
from simclr.errors import DivergedError, RunError, SettingError
from simclr.randomness import torch_seed
from simclr.runs.run import Run
from simclr.training.gathering import SHARED_FOLDER, gather_entries, is_same_on_all_ranks
from simclr.training.peers import watched
from simclr.training.progress import Progress
from simclr.training.stopping import StopRequests

Backward = Callable[[Any], tuple[Tensor, Any]]
"""Forward and backward pass of one step: leaves gradients, returns the loss and what `describe` reads."""

_DIVERGED = (
    "The last checkpoint is kept. A lower lr or machine.precision 32 may help; for a pretraining, doctor RUN --replay "
    "says where"
)


@runtime_checkable
class Batches(Protocol):
    """Batches by step: `Resident` or `Streamed`."""

    storage: str
    bad: Mapping[str, str]
    """path and reason of the images found unreadable so far"""

    def __call__(self, steps: range) -> Iterable[Any]: ...


class Parts(NamedTuple):
    """Parts of a training run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    backward: Backward
    processes: int | None = None
    """number of processes, if results depend on it"""
    chosen: Mapping[str, Any] | None = None
    """settings that were chosen before the first step; a run that resumes keeps them"""

    @property
    def circumstances(self) -> dict[str, Any]:
        """Machine settings and choices that change results, and so must be the same when a run resumes."""
        processes = {} if self.processes is None else {"machine.devices": self.processes}
        chosen = {} if self.chosen is None else {"chosen": dict(self.chosen)}
        return {"machine.storage": self.batches.storage, **processes, **chosen}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a run, learning rates and regular actions, all counted in steps."""

    steps: int
    lr: Callable[[int], float]
    """learning rate of a step, counted from 0"""
    seed: int
    log_every: int = 20
    save_every: int = 1000
    evaluate_every: int = 0
    """0: never"""


def fit(
    run: Run,
    fabric: Fabric,
    parts: Parts,
    schedule: Schedule,
    *,
    describe: Callable[[Any], dict[str, float]] = lambda outputs: {},
    evaluate: Callable[[], dict[str, float]] = lambda: {},
) -> dict[str, Any]:
    """Train to the end of `schedule`, from the last checkpoint of `run` if there is one; return the last line of the
    log.

    Batches and all draws are functions of the step, so an interrupted run ends bit for bit where an uninterrupted one
    does. Raises Interrupted after SIGINT or SIGTERM, once the state is saved, and DivergedError if the loss or the
    network is not finite.
    """
    run.begin()
    try:
        with watched(run.path):
            fabric.barrier()  # the other processes read the folder as the first one leaves it
            start = _restore(run, fabric, parts)
            if start > schedule.steps:
                raise RunError(run.path, f"its checkpoint is of step {start}, but the run has {schedule.steps} steps")
            with Progress(schedule.steps, start, shown=run.writes) as progress, StopRequests(fabric) as stop:
                recorder = _Recorder(run, fabric, progress, describe, evaluate)
                _train(fabric, parts, schedule, start, recorder, stop)
    except BaseException as error:
        run.release()
        if (failure := failure_of_workers(error)) is not None:
            raise failure from None
        raise
    return recorder.facts or next((line for line in reversed(run.metrics()) if "loss" in line), {})


def _train(
    fabric: Fabric, parts: Parts, schedule: Schedule, start: int, recorder: "_Recorder", stop: StopRequests
) -> None:
    steps = range(start, schedule.steps)
    batches = iter(parts.batches(steps))
    for step in steps:
        batch = stop.wait_for(lambda: recorder.clock.next(batches))
        if stop.on_any_rank():
            recorder.save(parts, step)
            stop.leave(step, schedule.steps)
        loss, outputs = train_step(fabric, parts, schedule, step, batch)
        done = step + 1
        last = done == schedule.steps
        if last or done % schedule.log_every == 0:
            recorder.log(done, schedule.lr(step), loss, outputs)
        if schedule.evaluate_every and done % schedule.evaluate_every == 0 and not last:
            recorder.evaluate(done)
        if last or done % schedule.save_every == 0:
            recorder.save(parts, done)
        recorder.progress.advance()


def train_step(fabric: Fabric, parts: Parts, schedule: Schedule, step: int, batch: Any) -> tuple[Tensor, Any]:
    """Train one step on a batch; return the loss and what `describe` reads."""
    for group in parts.optimizer.param_groups:
        group["lr"] = schedule.lr(step)
    torch.manual_seed(torch_seed(schedule.seed, step, fabric.global_rank))  # dropout, stochastic depth
    loss, outputs = parts.backward(batch)
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    return loss, outputs


class _Recorder:
    """Log lines, evaluations and checkpoints of a run, with their times."""

    def __init__(
        self, run: Run, fabric: Fabric, progress: Progress, describe: Callable[[Any], dict], metrics: Callable[[], dict]
    ) -> None:
        self.run, self.fabric, self.progress, self.describe, self.metrics = run, fabric, progress, describe, metrics
        self.clock = _Clock(fabric.world_size)
        self.facts: dict[str, Any] = {}

    def log(self, step: int, lr: float, loss: Tensor, outputs: Any) -> None:
        self.facts = {"step": step, "loss": self._finite(loss, step), "lr": lr, **self.describe(outputs)}
        self.facts |= self.clock.read()
        if self.fabric.device.type == "cuda":
            self.facts["memory_mb"] = round(torch.cuda.max_memory_allocated(self.fabric.device) / 1e6)
        self.run.log(**self.facts)
        self.progress.show(self.facts)

    def evaluate(self, step: int) -> None:
        with self.clock.paused():
            metrics = {"step": step, **self.metrics()}
            self.run.log(**metrics)
            self.progress.show(self.facts | metrics)

    def save(self, parts: Parts, step: int) -> None:
        """Save a checkpoint. A network that has diverged, which it can before its loss shows it, must not replace a
        good one."""
        with self.clock.paused():
            for name, value in parts.model.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise DivergedError(f"{name} is not finite at step {step}. {_DIVERGED}")
            self.run.record_unreadable(gather_entries(dict(parts.batches.bad)))
            self.run.save(_state(self.fabric, parts, step))

    def _finite(self, loss: Tensor, step: int) -> float:
        """Return the mean loss over processes; raise DivergedError if it is not finite."""
        value = self.fabric.all_reduce(loss.detach(), reduce_op="mean").item()
        if value != value or value in (float("inf"), float("-inf")):
            raise DivergedError(f"the loss is {value} at step {step}. {_DIVERGED}")
        return value


def _state(fabric: Fabric, parts: Parts, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),  # the loss scale of float16
        "circumstances": parts.circumstances,
    }


def _restore(run: Run, fabric: Fabric, parts: Parts) -> int:
    """Load the last checkpoint, if there is one, and return the number of steps done."""
    state = run.restore()
    if not is_same_on_all_ranks(fabric, -1 if state is None else state["step"]):
        raise RunError(run.path, "processes see different checkpoints", SHARED_FOLDER)
    if state is None:
        run.truncate_log(-1)
        return 0
    for name, value in state.get("circumstances", {}).items():
        if (now := parts.circumstances.get(name, value)) != value:
            remedy = f"The run in {run.path} began so, and its results depend on it; --fresh starts over"
            raise SettingError(name, str(value), now, remedy)
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    run.truncate_log(state["step"])
    fabric.barrier()
    return state["step"]


class _Clock:
    """Stopwatch of the loop: time, time spent waiting for data, and images since the last reading."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.start = self.since = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch and count the time spent waiting for it."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        self.images += self.world * len(batch.indices)
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in this context."""
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before

    def read(self) -> dict[str, float]:
        """Return throughput and data-loading wait since the last reading, and seconds since the start."""
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        facts = {
            "images_per_s": round(self.images / elapsed, 1),
            "data_wait_percent": round(100 * self.waited / elapsed, 2),
            "seconds": round(now - self.start, 2),
        }
        self.since, self.waited, self.images = now, 0.0, 0
        return facts
