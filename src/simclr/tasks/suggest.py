"""Settings for a first run, from the data and the machine, each with its reason."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning_fabric import Fabric

from simclr.data import Source
from simclr.data.specs import open_for_pretraining
from simclr.data.splits import sample_rows
from simclr.data.survey import survey
from simclr.errors import DataError
from simclr.optim import total_steps
from simclr.report.advice import Advice, Facts, as_yaml, caution, nested, suggest
from simclr.report.resources import in_words, total_memory
from simclr.runs.files import require_new_file, write_atomically
from simclr.runs.machine import Machine
from simclr.tasks.pretrain import Pretrain
from simclr.training.throughput import loop_rate, step_of
from simclr.views import Views

LOOKED = 200  # images whose sizes are looked at


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Suggest the settings of a first pretraining run on these images and this machine, as a recipe.

    Each line gives its reason and source. On a GPU the batch is tried out: the largest that runs, up to what the data
    allow. The duration follows from a short measurement. The rules are `simclr.advice.suggest`.
    """

    command: ClassVar[str] = "suggest"

    data: Any
    """images to learn from, as for pretrain"""
    out: Path | None = None
    """recipe to write, a .yaml file that must not be there; None prints it alone"""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """device to suggest for and to measure on; auto takes a GPU where there is one"""
    seconds: float = 5.0
    """time spent on measuring the rate"""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")

    def __call__(self) -> dict[str, Any]:
        """Print the recipe, write it to `out`, and return its settings."""
        if self.out is not None:
            require_new_file(self.out)
            if self.out.suffix.lower() not in (".yaml", ".yml"):
                raise ValueError(f"out: {self.out} must end with .yaml")
        source = open_for_pretraining(self.data)
        fabric = Machine(accelerator=self.accelerator).launch()
        facts = Facts(
            images=len(source), side=_side(source), device=fabric.device.type, memory=total_memory(fabric.device)
        )
        advice = suggest(facts)
        if facts.device == "cuda":
            largest = suggest(replace(facts, fits=len(source)))["batch"].value
            tried = largest_that_runs(largest, lambda batch: self._step(fabric, source, advice, batch))
            advice = suggest(replace(facts, fits=tried))
        task = self.task(advice)
        parts = task.assemble(fabric, source)
        rate = loop_rate(parts.batches, step_of(parts), task.batch, fabric.device, self.seconds)["images_per_s"]
        steps = total_steps(len(source), task.batch, task.epochs)
        text = self._header(facts, source, in_words(steps * task.batch / rate), rate) + as_yaml(advice)
        print(text, end="")
        if warning := caution(facts):
            print(f"\n{warning}")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out, text)
            print(f"wrote {self.out}")
        return nested(advice)

    def task(self, advice: dict[str, Advice]) -> Pretrain:
        """The run that is suggested."""
        settings = nested(advice)
        views = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.pop("views").items()}
        return Pretrain(
            data=self.data, views=Views(**views), machine=Machine(accelerator=self.accelerator), **settings
        )  # fmt: skip

    def _step(self, fabric: Fabric, source: Source, advice: dict[str, Advice], batch: int) -> None:
        parts = replace(self.task(advice), batch=batch).assemble(fabric, source)
        for one in parts.batches(range(2)):  # the moments of the optimizer come with the first
            step_of(parts)(one)

    def _header(self, facts: Facts, source: Source, duration: str, rate: float) -> str:
        device = torch.cuda.get_device_name() if facts.device == "cuda" else facts.device
        data = shlex.quote(str(self.data)) if isinstance(self.data, str | Path) else source.name
        recipe = shlex.quote(str(self.out)) if self.out else "FILE"
        return (
            f"# {source.name}: {facts.images:,} images of about {facts.side} px; written by simclr suggest\n#\n"
            f"#   simclr doctor   {data} --config {recipe}\n"
            f"#   simclr pretrain {data} --config {recipe}\n#\n"
            f"# Hardware: {device}, {facts.memory / 1e9:.3g} GB: about {duration}, from {rate:,.3g} images/s measured\n"
            "# Expected: no expectation on record\n"
        )


def largest_that_runs(batch: int, run: Callable[[int], None]) -> int:
    """`batch`, or the first of its halves that `run` takes without running out of memory; at least 2."""
    while batch > 2:
        try:
            run(batch)
            return batch
        except torch.OutOfMemoryError:
            pass  # outside of this block, where the traceback keeps no tensors alive
        torch.cuda.empty_cache()
        batch //= 2
    return batch


def _side(source: Source) -> int:
    """Median of the shorter sides of some images."""
    images, errors = survey(source, sample_rows(source, LOOKED))
    if not images:
        raise DataError(source.name, f"none of {len(errors)} images can be read", "simclr scan lists the reasons")
    return int(np.median([image.side for image in images]))
