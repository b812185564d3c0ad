"""Throughput and memory of a training loop."""

import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from simclr.training.fit import Parts

Agree = Callable[[bool], bool]
"""Decision of the first process, which all processes that work together follow"""


def step_of(parts: Parts) -> Callable[[Any], None]:
    """Return a training step without a schedule as a function of a batch."""

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
    agree: Agree = bool,
) -> dict[str, float]:
    """Return throughput over `seconds` of batches, after two that are not counted, and the fraction of time spent
    waiting for data.

    `images` is the number of images of a batch over all processes. Processes that work together must all take as many
    steps: `agree` returns their common decision on taking another one.
    """
    iterator = iter(batches(range(1_000_000)))
    for _ in range(2):
        work(next(iterator))
    synchronise(device)
    steps, waited, start = 0, 0.0, time.perf_counter()
    while agree(not steps or time.perf_counter() - start < seconds):
        before = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - before
        work(batch)
        steps += 1
    synchronise(device)
    total = time.perf_counter() - start
    return {"seconds": total / steps, "images_per_s": images * steps / total, "data_wait": waited / total}


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory_used(device: torch.device) -> float:
    """Return the maximum memory in use so far, MB: of the device if it keeps count, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1000  # bytes there, elsewhere kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
