"""Throughput and memory of a training loop."""

import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def step_of(parts: Any) -> Callable[[Any], None]:
    """A training step, without a schedule, as a function of a batch."""

    def train(batch: Any) -> None:
        parts.backward(batch)
        parts.optimizer.step()
        parts.optimizer.zero_grad()

    return train


def loop_rate(
    batches: Callable[[range], Iterable],
    work: Callable[[Any], None],
    images: int,
    device: torch.device,
    seconds: float,
    agreed: Callable[[bool], bool] = bool,
) -> dict[str, float]:
    """Rate over `seconds` of batches, after two that are not counted, and the share of the time spent waiting.

    Processes that work together must all take as many steps: `agreed` is what they make of whether to take one more.
    """
    iterator = iter(batches(range(1_000_000)))
    for _ in range(2):
        work(next(iterator))
    _finish(device)
    done, waited, start = 0, 0.0, time.perf_counter()
    while agreed(not done or time.perf_counter() - start < seconds):
        before = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - before
        work(batch)
        done += 1
    _finish(device)
    total = time.perf_counter() - start
    return {"seconds": total / done, "images_per_s": images * done / total, "data_wait": waited / total}


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory_used(device: torch.device) -> float:
    """Most memory held so far, MB: of the device where it keeps count, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
