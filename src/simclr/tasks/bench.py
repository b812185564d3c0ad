"""Throughput of each part of a pretraining run, and what to change."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simclr.data import Source, jpeg
from simclr.losses import Keys
from simclr.runs.environment import cores, environment
from simclr.runs.files import require_new_file, write_atomically
from simclr.settings import check_settings, flat, setting
from simclr.tasks.pretrain import Pretrain
from simclr.training.crops import draw_groups
from simclr.training.fit import Parts
from simclr.training.throughput import Agree, loop_rate, memory_used, step_of, synchronise
from simclr.training.view_memory import views_of

WAIT = 0.1  # fraction of a step spent waiting for data above which data loading is what to change
QUEUED = 8  # calls after which a GPU is waited for
STAGES = ("views", "loss", "step", "loader", "all")
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}  # by precision


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure the parts of the pretraining run that these settings describe, for some seconds each.

    views: all views of images in memory. loss: its forward and backward pass on embeddings. step: network, loss and
    optimizer on one batch in memory. loader: batches without a step. all: batches and steps together. Throughput is in
    images per second over all processes; an image counts once, whatever its number of views.
    """

    command: ClassVar[str] = "bench"

    pretrain: Pretrain = flat("fresh", "tracker")
    out: Path | None = None
    """JSON file to write (default: none)"""
    overwrite: bool = False
    """replacement of existing files"""
    stage: Literal["all", "views", "loss", "step", "loader"] = "all"
    """part to measure; all measures every part"""
    seconds: float = setting(5.0, above=0)
    """time for each measurement, seconds"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        """Print the table, write it to `out` and return it."""
        task = self.pretrain
        if self.out is not None:
            require_new_file(self.out, self.overwrite)
        source, _ = task.sources()
        fabric = task.machine.launch()
        parts = replace(task, first_size=None).assemble(fabric, source)
        device, agree, world = fabric.device, fabric.broadcast, fabric.world_size
        wanted = STAGES if self.stage == "all" else (self.stage,)
        local = task.batch // world
        figures: dict[str, Any] = {"device": str(device), "batch": task.batch, "processes": world}
        if "views" in wanted:
            figures["views"] = _rate(self._views(source, local, device), task.batch, device, self.seconds)
        if "loss" in wanted:
            figures["loss"] = _rate(self._loss(device), task.batch, device, self.seconds)
        if "step" in wanted:
            figures["step"] = self._step(parts, device, agree)
        if "loader" in wanted:
            figures["loader"] = loop_rate(parts.batches, lambda batch: None, task.batch, device, self.seconds, agree)
        if "all" in wanted:
            figures["all"] = loop_rate(parts.batches, step_of(parts), task.batch, device, self.seconds, agree)
        figures |= {"storage": type(parts.batches).__name__.lower(), "memory_mb": memory_used(device)}
        figures["advice"] = self.advice(figures)
        if fabric.is_global_zero:
            _print(figures)
            if self.out:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.out, json.dumps({**figures, "environment": environment()}, indent=2) + "\n")
                print(f"wrote {self.out}")
        return figures

    def _views(self, source: Source, n: int, device: torch.device) -> Callable[[], object]:
        """Return a function that makes the views of this process's images of a batch.

        Images have one size, as those of a source in memory have; the first image represents files of many sizes.
        """
        task = self.pretrain
        pixels = source.images[:n] if source.images is not None else np.stack([source.read(0)] * min(n, 64))
        images = torch.from_numpy(np.resize(pixels, (n, *pixels.shape[1:]))).to(device)
        epochs, backend = itertools.count(), "compiled" if task.machine.compile and device.type == "cuda" else "auto"

        def work() -> None:
            epoch = next(epochs)
            drawn = draw_groups(task.view_policies, np.arange(n), epoch, task.seed, tuple(images.shape[1:3]))
            views_of(images, task.view_policies, drawn, backend)

        return work

    def _loss(self, device: torch.device) -> Callable[[], object]:
        """Return a function that computes the loss of a whole batch and its gradient."""
        task, objective = self.pretrain, self.pretrain.objective
        z = torch.randn(len(task.view_policies), task.batch, task.head_features, device=device)
        labels, key_views = torch.arange(task.batch, device=device), task.key_count

        def work() -> Tensor:
            views = tuple(z.clone().requires_grad_())
            keys = Keys.of(views[:key_views], labels=labels)
            return torch.autograd.grad(objective(views, labels, keys), views)[0]

        return work

    def _step(self, parts: Parts, device: torch.device, agree: Agree) -> dict[str, float]:
        batch, train = next(iter(parts.batches(range(1)))), step_of(parts)
        with FlopCounterMode(display=False) as counter:
            train(batch)
        rate = _rate(lambda: train(batch), self.pretrain.batch, device, self.seconds, agree)
        dtype = DTYPES[self.pretrain.machine.precision_in_use]
        speed = counter.get_total_flops() / rate["seconds"]  # of this process
        return rate | {"tflops": speed / 1e12, "share_of_peak": speed / matmul_peak(device, dtype)}

    def advice(self, figures: dict[str, Any]) -> str:
        """Return the change that would speed the run up most."""
        machine = self.pretrain.machine
        together, step = figures.get("all"), figures.get("step")
        if not together or not step:
            return "measure all stages for advice"
        on_device = figures["storage"] == "resident" and figures["device"] != "cpu"  # which makes views of its images
        if together["data_wait"] > WAIT and not on_device:
            rates = f"the loader gives {figures['loader']['images_per_s']:,.0f} images/s, the step takes "
            rates += f"{step['images_per_s']:,.0f}: "
            enough = figures["loader"]["images_per_s"] > step["images_per_s"]  # alone, with all cores
            if figures["device"] == "cpu" and (enough or figures["storage"] == "resident"):
                return rates + "views and step share this processor; use a GPU for the step"
            if machine.worker_processes < cores() - 1:
                return rates + f"raise machine.workers from {machine.worker_processes} towards {cores() - 1}"
            regions = "" if jpeg.reads_regions() else "for JPEG files: pip install turbojpeg; else "
            return rates + regions + "try decode: fast, images stored at a smaller size, or more CPU cores"
        if figures["loss"]["seconds"] > 0.1 * step["seconds"]:
            return "the loss takes a tenth of the step or more: a larger encoder would cost little"
        if step["share_of_peak"] < 0.3 and not machine.compile and figures["device"] != "cpu":
            return f"the step reaches {step['share_of_peak']:.0%} of the device's matmul rate: try machine.compile"
        return "the step is the limit, and it does not wait for data: use a smaller encoder, or more devices"


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, an upper bound for networks here."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / _rate(lambda: a @ a, 1, device, 1.0)["seconds"]


def _rate(
    work: Callable[[], object], images: int, device: torch.device, seconds: float, agree: Agree = bool
) -> dict[str, float]:
    """Return the median time of a call, after one that is not counted; `agree` as for `loop_rate`. A device other than
    the CPU is waited for after several calls, as in training, where it works while the next call is prepared."""
    work()
    synchronise(device)
    calls = 1 if device.type == "cpu" else QUEUED
    times: list[float] = []
    while agree(not times or calls * sum(times) < seconds):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        times.append((time.perf_counter() - start) / calls)
    median = float(np.median(times))
    return {"seconds": median, "images_per_s": images / median}


def _print(figures: dict[str, Any]) -> None:
    processes = f" in {figures['processes']} processes" if figures["processes"] > 1 else ""
    print(f"batch {figures['batch']:,} on {figures['device']}{processes}, images {figures['storage']}")
    for stage in STAGES:
        if stage not in figures:
            continue
        rate = figures[stage]
        more = f"  waits for data {rate['data_wait']:.1%}" if "data_wait" in rate and stage == "all" else ""
        if "share_of_peak" in rate:
            more = f"  {rate['tflops']:.3g} TFLOP/s per process, {rate['share_of_peak']:.0%} of a large matrix product"
        print(f"{stage:<7}{rate['images_per_s']:>12,.0f} images/s {1000 * rate['seconds']:>10,.1f} ms per batch{more}")
    print(f"maximum memory {figures['memory_mb']:,.0f} MB\nadvice: {figures['advice']}")
