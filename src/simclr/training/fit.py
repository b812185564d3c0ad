"""The only training loop of the package."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.data import Source
from simclr.errors import Interrupted
from simclr.randomness import bits
from simclr.runs.run import Run
from simclr.training.gathering import gather_entries
from simclr.training.progress import Progress

Backward = Callable[[Any], tuple[Tensor, Any]]
"""One step's forward and backward pass: leaves gradients, returns the loss and whatever `describe` reads."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is and what it does on the way, all counted in steps."""

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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[range], Iterable],
    backward: Backward,
    plan: Plan,
    *,
    describe: Callable[[Any], dict[str, float]] = lambda outputs: {},
    evaluate: Callable[[], dict[str, float]] = lambda: {},
    bad: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train `model` to the end of `plan`, from the last checkpoint of `run` where there is one.

    `batches(steps)` gives the batches of those steps; as they and all draws are functions of the step, an
    interrupted run ends bit for bit where an uninterrupted one does. `bad` holds the images that this process found
    unreadable so far; they are noted with each checkpoint. Returns the last line of the log.
    Raises Interrupted after SIGINT or SIGTERM, once the state is saved, and FloatingPointError where the loss is
    no longer a number or the network not finite.
    """
    start = _restore(run, fabric, model, optimizer)
    if start > plan.steps:
        raise ValueError(f"the checkpoint in {run.path} is of step {start}, but the run has {plan.steps} steps")
    steps = range(start, plan.steps)
    facts: dict[str, Any] = {}
    with Progress(plan.steps, start, shown=run.writes) as progress, _stop_requests() as stop:
        clock = _Clock(fabric.world_size)
        for step, batch in zip(steps, clock.waits(batches(steps)), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = plan.lr(step)
            torch.manual_seed(int(bits(plan.seed, step, fabric.global_rank)[0] >> 1))  # dropout, stochastic depth
            loss, outputs = backward(batch)
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            last = done == plan.steps
            if done % plan.log_every == 0 or last:
                facts = {"step": done, "loss": _finite(fabric, loss, done), "lr": plan.lr(step), **describe(outputs)}
                facts |= clock.read()
                if fabric.device.type == "cuda":
                    facts["memory_mb"] = round(torch.cuda.max_memory_allocated(fabric.device) / 1e6)
                run.log(**facts)
                progress.show(facts)
            if plan.evaluate_every and done % plan.evaluate_every == 0 and not last:
                with clock.paused():
                    found = evaluate()
                    run.log(step=done, **found)
                    progress.show({"step": done, **found})
            stopping = _agreed(fabric, stop) if fabric.world_size == 1 or done % plan.log_every == 0 else False
            if done % plan.save_every == 0 or last or stopping:
                with clock.paused():
                    _must_be_finite(model, done)
                    run.record_unreadable(gather_entries(dict(bad)))
                    run.save(_state(fabric, model, optimizer, done))
            progress.advance()
            if stopping and not last:
                fabric.barrier()  # none leaves before the checkpoint is written: its parent would be ended with it
                raise Interrupted(f"stopped at step {done} of {plan.steps} and saved; the same command goes on")
    return facts or next((line for line in reversed(run.metrics()) if "loss" in line), {})


def begin(fabric: Fabric, folder: Path, task: Any, source: Source, fresh: bool) -> Run:
    """The run folder of a task that learns from `source`, written by the first process, opened by all.

    What one process cannot do, such as going on with other settings, ends all of them.
    """
    error = None
    try:
        data = {"images": len(source), "fingerprint": source.fingerprint}
        run = Run.start(folder, task, data=data, fresh=fresh, writes=fabric.is_global_zero)
    except (ValueError, OSError) as found:
        error = found
    failed = fabric.all_reduce(torch.tensor(float(error is not None), device=fabric.device), reduce_op="sum")
    if error is not None:
        raise error
    if failed:
        raise ValueError(f"another process could not open {folder}")
    return run


def finished(run: Run, fabric: Fabric) -> bool:
    """Whether the run is complete. Raises ValueError where processes see different folders."""
    done = run.result is not None
    if _seen_alike(fabric, done):
        return done
    raise ValueError(f"some processes see a finished run in {run.path}, others do not: {_SHARED}")


_SHARED = "its folder must lie on storage that all nodes share"


def _seen_alike(fabric: Fabric, value: int | bool) -> bool:
    """Whether `value` is the same on every process."""
    differs = torch.tensor(float(fabric.broadcast(value) != value), device=fabric.device)
    return not fabric.all_reduce(differs, reduce_op="sum").item()


def _state(fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    precision = fabric.strategy.precision.state_dict()  # the loss scale of float16
    return {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "precision": precision}


def _restore(run: Run, fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = run.restore()
    if not _seen_alike(fabric, -1 if state is None else state["step"]):
        raise ValueError(f"processes see different checkpoints in {run.path}: {_SHARED}")
    if state is None:
        run.truncate_log(-1)
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    run.truncate_log(state["step"])
    fabric.barrier()
    return state["step"]


def _finite(fabric: Fabric, loss: Tensor, step: int) -> float:
    """The mean loss over processes as a number, or an error that says when it stopped being one."""
    value = fabric.all_reduce(loss.detach(), reduce_op="mean").item()
    if value != value or value in (float("inf"), float("-inf")):
        raise FloatingPointError(
            f"the loss is {value} at step {step}; the last checkpoint is kept. "
            "A lower lr or machine.precision 32 may help"
        )
    return value


def _must_be_finite(model: nn.Module, step: int) -> None:
    """A network that is lost must not replace a good checkpoint; it can be before its loss shows it."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(
                f"{name} is no longer finite at step {step}; the last checkpoint is kept. "
                "A lower lr or machine.precision 32 may help"
            )


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set an event instead of ending the process; a second SIGINT ends it at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: object) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by other than Python


def _agreed(fabric: Fabric, stop: threading.Event) -> bool:
    """True on every process as soon as one was asked to stop, so that none waits for another for ever."""
    if fabric.world_size == 1:
        return stop.is_set()
    return bool(fabric.all_reduce(torch.tensor(float(stop.is_set()), device=fabric.device), reduce_op="sum").item())


class _Clock:
    """Seconds since the last reading: all of them, and those spent waiting for data."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.start = self.since = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def waits(self, batches: Iterable) -> Iterator:
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            self.images += self.world * len(batch.indices)
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        facts = {
            "images_per_s": round(self.images / elapsed, 1),
            "data_wait_percent": round(100 * self.waited / elapsed, 2),
            "seconds": round(now - self.start, 2),
        }
        self.since, self.waited, self.images = now, 0.0, 0
        return facts
