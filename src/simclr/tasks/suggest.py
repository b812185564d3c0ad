"""Settings for a first run, from the data and the machine, each with its reason."""

import math
import os
import shlex
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric

from simclr.data import Source
from simclr.data.detail import contrast_lost
from simclr.data.specs import open_for_pretraining
from simclr.data.splits import sample_rows
from simclr.data.survey import survey
from simclr.errors import DataError, SettingError
from simclr.optim import total_steps
from simclr.report.advice import (
    SIZES,
    Facts,
    caution,
    start_advice,
    suggest,
)
from simclr.report.resources import rough_duration
from simclr.report.suggestions import Advice, as_yaml, nested
from simclr.runs.environment import cores, cpu_computes_bf16, total_memory
from simclr.runs.files import require_new_file, write_atomically
from simclr.runs.machine import Device, Machine
from simclr.settings import check_settings, seconds_of, setting
from simclr.tasks.pretrain import Pretrain
from simclr.training.throughput import loop_rate, step_of
from simclr.views import Views

OLDEST_GPU = (7, 0)  # compute capability from which Triton works
SAMPLE, DETAILED = 200, 60  # images whose sizes are measured, and those whose detail is


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Suggest settings for a first pretraining run on these images and this machine, as a recipe.

    Each line gives its reason and source. On a GPU the batch size is tried: the largest that fits in memory, up to what
    the data allow. The duration follows from a short measurement.
    """

    command: ClassVar[str] = "suggest"

    data: Any
    """training images, as for pretrain"""
    out: Path | None = None
    """recipe to write, a .yaml file (default: the recipe is only printed)"""
    overwrite: bool = False
    """replacement of existing files"""
    budget: str | None = None
    """duration of the pretraining, such as 15min, 2h or 1d (default: 15min on a CPU, 50,000 steps on a GPU)"""
    seconds: float = setting(5.0, above=0)
    """time for each measurement, seconds"""
    machine: Device = Device()
    """device and workers"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        """Print the recipe, write it to `out`, and return its settings."""
        if self.out is not None:
            require_new_file(self.out, self.overwrite)
            if self.out.suffix.lower() not in (".yaml", ".yml"):
                raise SettingError("out", "a path that ends with .yaml", str(self.out))
        budget = None if self.budget is None else seconds_of("budget", self.budget)
        if budget == math.inf:
            raise SettingError("budget", "a duration such as 15min, 2h or 1d", self.budget)
        source = open_for_pretraining(self.data)
        machine = Machine(accelerator=self.machine.accelerator, workers=self.machine.workers)
        facts = replace(measure(source, torch.device(machine.kind)), budget=budget)
        fabric = self.task(suggest(facts), machine).machine.launch()  # in the suggested precision
        if facts.device == "cuda":
            largest = suggest(replace(facts, fits=len(source)))["batch"].value
            task = self.task(suggest(facts), machine)
            fits = largest_that_fits(largest, lambda batch: _try_batch(replace(task, batch=batch), fabric, source))
            facts = replace(facts, fits=fits)
        task = self.task(suggest(facts), machine)
        parts = task.assemble(fabric, source)
        rate = loop_rate(parts.batches, step_of(parts), task.batch, fabric.device, self.seconds)["images_per_s"]
        advice = suggest(replace(facts, rate=rate))
        task = self.task(advice, machine)
        steps = total_steps(len(source), task.batch, task.epochs)
        text = self._header(facts, source, rough_duration(steps * task.batch / rate), rate) + as_yaml(advice)
        text += start_advice(facts)
        print(text, end="")
        if warning := caution(facts):
            print(f"\n{warning}")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out, text)
            print(f"wrote {self.out}")
        return nested(advice)

    def task(self, advice: dict[str, Advice], machine: Machine) -> Pretrain:
        """Return the suggested run."""
        settings = nested(advice)
        views = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.pop("views").items()}
        machine = replace(machine, **settings.pop("machine", {}))
        return Pretrain(data=self.data, views=Views(**views), machine=machine, **settings)

    def _header(self, facts: Facts, source: Source, duration: str, rate: float) -> str:
        device = torch.cuda.get_device_name() if facts.device == "cuda" else facts.device
        data = shlex.quote(str(self.data)) if isinstance(self.data, str | Path) else source.name
        recipe = shlex.quote(str(self.out)) if self.out else "FILE"
        return (
            f"# {source.name}: {facts.images:,} images of about {facts.side} px; written by simclr suggest\n#\n"
            f"#   simclr doctor   {data} --config {recipe}\n"
            f"#   simclr pretrain {data} --config {recipe}\n#\n"
            f"# Hardware: {device}, {facts.memory / 1e9:.3g} GB: about {duration}, from {rate:,.3g} images/s measured\n"
            "# Expected: no figures recorded\n"
        )


def measure(source: Source, device: torch.device) -> Facts:
    """Return the facts that suggestions are made from."""
    images, errors = survey(source, sample_rows(source, SAMPLE).tolist())
    if not images:
        problem = f"none of {len(errors)} images can be read"
        raise DataError(source.name, problem, "`simclr scan` lists the reasons")
    side = int(np.median([image.side for image in images]))
    sizes = [size for size in SIZES if size < side]
    lost = contrast_lost((source.read(image.row) for image in images[:DETAILED]), sizes)
    memory = total_memory(device)
    return Facts(images=len(source), side=side, device=device.type, memory=memory, lost=lost, cores=cores(),
                 compiles=device.type == "cuda" and compiles(), computes_bf16=cpu_computes_bf16())  # fmt: skip


def compiles() -> bool:
    """Return whether there is what torch.compile needs for a GPU: one that Triton supports, Triton, a C compiler and
    Python's header files."""
    compiler = any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    return compiler and headers and find_spec("triton") is not None and torch.cuda.get_device_capability() >= OLDEST_GPU


def largest_that_fits(batch: int, run: Callable[[int], None]) -> int:
    """Return `batch`, or the first of its halves that `run` takes without running out of memory; at least 2."""
    while batch > 2:
        try:
            run(batch)
            return batch
        except torch.OutOfMemoryError:
            pass  # outside of this block, where the traceback keeps no tensors alive
        torch.cuda.empty_cache()
        batch //= 2
    return batch


def _try_batch(task: Pretrain, fabric: Fabric, source: Source) -> None:
    parts = task.assemble(fabric, source)
    for batch in parts.batches(range(2)):  # the moments of the optimizer come with the first
        step_of(parts)(batch)
