"""How fast each part of a pretraining run is here, and which of them is worth changing."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simclr.data import Source, jpeg
from simclr.data.specs import unlabelled
from simclr.runs.environment import cores, environment
from simclr.runs.files import require_folder_path, write_atomically
from simclr.tasks.pretrain import Pretrain
from simclr.training.fit import Parts
from simclr.training.throughput import _finish, loop_rate, memory_used, step_of

WAIT = 0.1  # share of a step spent waiting for data from which on loading is what to change


@dataclass(frozen=True, kw_only=True)
class Bench(Pretrain):
    """Measure the parts of the pretraining run that these settings describe, for some seconds each, without running it.

    views: both views of images in memory. loss: its forward and backward pass on embeddings. step: network, loss and
    optimizer on one batch that is there already. loader: batches without a step. all: batches and steps together.
    Images are counted once, not once a view.
    """

    command: ClassVar[str] = "bench"

    out: Path | None = None
    """folder for bench.json; None writes nothing"""
    fresh: bool = False
    """of no effect here: nothing is trained that could be gone on with"""
    stage: Literal["all", "views", "loss", "step", "loader"] = "all"
    """the one part to measure; all measures every part"""
    seconds: float = 5.0
    """time spent on each part"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")

    def __call__(self) -> dict[str, Any]:
        """Print the table and return it; with `out`, also write it there as bench.json."""
        if self.out is not None:
            require_folder_path(self.out)
        source = unlabelled(self.data)
        fabric = self.machine.launch()
        parts = self.assemble(fabric, source)
        device, agreed = fabric.device, fabric.broadcast
        wanted = {"views", "loss", "step", "loader", "all"} if self.stage == "all" else {self.stage}
        local = self.batch // fabric.world_size
        found: dict[str, Any] = {"device": str(device), "batch": self.batch, "processes": fabric.world_size}
        if "views" in wanted:
            found["views"] = _rate(self._views(source, device), local, device, self.seconds)
        if "loss" in wanted:
            found["loss"] = _rate(self._loss(device), self.batch, device, self.seconds)
        if "step" in wanted:
            found["step"] = self._step(parts, local, device, agreed)
        if "loader" in wanted:
            found["loader"] = loop_rate(parts.batches, lambda batch: None, local, device, self.seconds, agreed)
        if "all" in wanted:
            found["all"] = loop_rate(parts.batches, step_of(parts), local, device, self.seconds, agreed)
        found |= {"storage": type(parts.batches).__name__.lower(), "memory_mb": memory_used(device)}
        found["advice"] = self.advice(found)
        if fabric.is_global_zero:
            _print(found)
            if self.out:
                self.out.mkdir(parents=True, exist_ok=True)
                content = json.dumps({**found, "environment": environment()}, indent=2) + "\n"
                write_atomically(self.out / "bench.json", content)
                print(f"wrote {self.out / 'bench.json'}")
        return found

    def _views(self, source: Source, device: torch.device) -> Callable[[], object]:
        """Of images of one size, as a source in memory holds; the first image stands for files of many sizes."""
        n = self.batch
        pixels = source.images[:n] if source.images is not None else np.stack([source.read(0)] * min(n, 64))
        images = torch.from_numpy(np.resize(pixels, (n, *pixels.shape[1:]))).to(device)
        epochs = count()

        def work() -> None:
            epoch = next(epochs)
            for drawn in self.views.draw_all(np.arange(n), epoch, 2, self.seed, tuple(images.shape[1:3])):
                self.views.apply(images, drawn)

        return work

    def _loss(self, device: torch.device) -> Callable[[], object]:
        z = torch.randn(2, self.batch, self.head_features, device=device)
        labels = torch.arange(self.batch, device=device)

        def work() -> Tensor:
            z_a, z_b = z.clone().requires_grad_()
            return torch.autograd.grad(self.objective(z_a, z_b, labels), (z_a, z_b))[0]

        return work

    def _step(self, parts: Parts, local: int, device: torch.device, agreed: Callable[[bool], bool]) -> dict[str, float]:
        batch, train = next(iter(parts.batches(range(1)))), step_of(parts)
        with FlopCounterMode(display=False) as counter:
            train(batch)
        found = _rate(lambda: train(batch), local, device, self.seconds, agreed)
        halves = self.machine.precision in ("auto", "bf16") and device.type == "cuda"
        dtype = torch.bfloat16 if halves else torch.float32
        speed = counter.get_total_flops() / found["seconds"]
        return found | {"tflops": speed / 1e12, "share_of_peak": speed / matmul_peak(device, dtype)}

    def advice(self, found: dict[str, Any]) -> str:
        """What would speed the run up most, in one line."""
        together, step = found.get("all"), found.get("step")
        if not together or not step:
            return "measure all stages for advice"
        if together["data_wait"] > WAIT:
            rates = f"the loader gives {found['loader']['images_per_s']:,.0f} images/s, the step takes "
            rates += f"{step['images_per_s']:,.0f}: "
            enough = found["loader"]["images_per_s"] > step["images_per_s"]  # alone, with all cores
            if found["storage"] == "resident" or (enough and found["device"] == "cpu"):
                return rates + "views and step share this processor; a GPU for the step would end the wait"
            if self.machine.worker_processes < cores() - 1:
                return rates + f"raise machine.workers from {self.machine.worker_processes} towards {cores() - 1}"
            regions = "" if jpeg.reads_regions() else "for JPEG files: pip install turbojpeg; else "
            return rates + regions + "try decode: fast, images stored at a smaller size, or more CPU cores"
        if found["loss"]["seconds"] > 0.1 * step["seconds"]:
            return "the loss is a tenth of the step or more: a larger encoder would cost little"
        if step["share_of_peak"] < 0.3 and not self.machine.compile and found["device"] != "cpu":
            return f"the step reaches {step['share_of_peak']:.0%} of the device's matmul rate: try machine.compile"
        return "the step is the limit and data are never waited for: a smaller encoder, or more devices"


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, measured: what no network exceeds here."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / _rate(lambda: a @ a, 1, device, 1.0)["seconds"]


def _rate(
    work: Callable[[], object], images: int, device: torch.device, seconds: float, agreed: Callable[[bool], bool] = bool
) -> dict[str, float]:
    """Median time of a call, after one that is not counted; `agreed` as for `loop_rate`."""
    work()
    _finish(device)
    times: list[float] = []
    while agreed(not times or sum(times) < seconds):
        start = time.perf_counter()
        work()
        _finish(device)
        times.append(time.perf_counter() - start)
    typical = float(np.median(times))
    return {"seconds": typical, "images_per_s": images / typical}


def _print(found: dict[str, Any]) -> None:
    print(f"batch {found['batch']:,} on {found['device']}, images {found['storage']}")
    for stage in ("views", "loss", "step", "loader", "all"):
        if stage not in found:
            continue
        one = found[stage]
        more = f"  waits for data {one['data_wait']:.1%}" if "data_wait" in one and stage == "all" else ""
        if "share_of_peak" in one:
            more = f"  {one['tflops']:.3g} TFLOP/s, {one['share_of_peak']:.0%} of a large matrix product"
        print(f"{stage:<7}{one['images_per_s']:>12,.0f} images/s {1000 * one['seconds']:>10,.1f} ms a batch{more}")
    print(f"memory {found['memory_mb']:,.0f} MB at most\nadvice: {found['advice']}")
