"""Settings for a first run, from the data and the machine, each with its reason."""

import math
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

from simclr.data import Source
from simclr.data.detail import contrast_lost
from simclr.data.specs import open_for_pretraining
from simclr.data.splits import sample_rows
from simclr.data.survey import survey
from simclr.errors import DataError, SettingError
from simclr.models.start import Start
from simclr.optim import total_steps
from simclr.report.advice import (
    SIZES,
    Facts,
    caution,
    epochs_in,
    of_small_images,
    of_the_paper,
    side_advice,
    speed,
    start_advice,
    suggest,
)
from simclr.report.resources import kept_for_backward, rough_duration
from simclr.report.suggestions import Advice, as_yaml, nested
from simclr.runs.environment import cores, cpu_computes_bf16, total_memory
from simclr.runs.files import printable, require_new_file, write_atomically
from simclr.runs.machine import Device, Machine
from simclr.runs.recipe import is_import_path, saved_recipe
from simclr.settings import check_settings, seconds_of, setting
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.start import code_refused
from simclr.training.throughput import loop_rate, step_of
from simclr.views import Views

FEW = 100_000  # images below which the defaults of pretraining, which are those of ImageNet, do not fit
# settings that suggested ones depend on
DECIDING = {"encoder", "encoder_options", "policies", "views.size", "image_size", "first_size", "keep_levels",
            "optimizer", "optimizer_options", "scaling"}  # fmt: skip
ON_CPU, ON_GPU = 0.5, 1.5  # float32 activations of a step, in parts of the memory; a GPU keeps them in bfloat16
FEWEST = 32  # images of a batch that is not reduced to fit in memory
OLDEST_GPU = (7, 0)  # compute capability from which Triton works
SMALL = 64  # pixels of a view up to which the settings for small images are suggested
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


def settings_without_trial(data: Any, device: Device, start: Start | None = None) -> dict[str, Any]:
    """Return the suggested settings from the images, the device and the number of cores, without a measurement.

    Weights to start from decide the encoder and the side of its images, of at most 224 px if it takes them. Views keep
    the suggested size on a CPU if the network has a small stem, and the epochs are those that fit by the operations of
    the network. The batch is one whose activations fit in memory.
    """
    facts = measure(open_for_pretraining(data), torch.device(device.kind))
    if start is not None or getattr(device, "precision", "auto") not in ("auto", "bf16"):
        facts = replace(facts, computes_bf16=False)  # bf16 has been measured with the suggested encoder
    if start is None:
        return nested(suggest(facts))
    advice = suggest(facts)
    size, is_cpu = start.card.image_size, facts.device == "cpu"
    if size > SIZES[-1] and start.takes(SIZES[-1]):
        size = SIZES[-1]
    if is_cpu and size <= SMALL:
        size = min(size, advice["views.size"].value)
    of_views = size <= SMALL  # those that are suggested for small images
    kept = {name: a for name, a in advice.items() if not name.startswith(("encoder", "image_size", "side"))
            and (of_views or not name.startswith("views."))}  # fmt: skip
    if not (is_cpu or of_views):
        of_small = {*of_small_images(1), "machine.compile", "log_every"}
        kept = {name: a for name, a in kept.items() if name not in of_small} | of_the_paper(advice["batch"].value)
    settings = nested(kept | side_advice(facts, size) | {"views.size": Advice(size, "")})
    operations, kept_bytes = cost(start, size)
    settings |= within_memory(settings["batch"], 2 * kept_bytes, (ON_CPU if is_cpu else ON_GPU) * facts.memory)
    if is_cpu:
        settings["epochs"] = min(settings["epochs"], epochs_in(facts, speed(facts) / operations))
        settings["knn_every"] = max(1, round(settings["epochs"] / 10))
    return settings


def cost(start: Start, size: int) -> tuple[float, float]:
    """Return the multiplications and additions of the encoder's forward pass for one view, which are as many as the
    multiplications for two, and the bytes that it keeps of each view for the backward pass."""
    encoder, views = start.build(size).train(), torch.zeros(2, start.card.channels, size, size)
    with FlopCounterMode(display=False) as counter, kept_for_backward(encoder) as kept:
        encoder(views)
    return counter.get_total_flops() / len(views), sum(kept) / len(views)


def within_memory(batch: int, each: float, memory: float) -> dict[str, int]:
    """Return settings of a batch of at most `batch` images, of `each` bytes, that fits in `memory`: a smaller batch, of
    at least 32, and a micro-batch if that does not fit."""
    held = batch
    while held > 2 and held * each > memory:
        held //= 2
    whole = held * max(1, min(batch, FEWEST) // held)
    return {"batch": whole} | ({"micro_batch": held} if held < whole else {})


def settings_without_recipe(task: Pretrain, given: set[str]) -> dict[str, Any]:
    """Return the settings to use in place of the defaults of a run whose command line sets the names `given`.

    They are those of the run in `out` if there is one, otherwise those of `simclr suggest` if there are fewer images
    than the defaults are made for. Settings that these depend on, such as another encoder, leave the defaults as they
    are. Weights to start from decide the encoder and the size of the views.
    """
    is_run = isinstance(task.data, str) and (Path(task.data) / "recipe.yaml").is_file()  # for `simclr doctor RUN`
    if task.data is None or is_run:
        return {}
    if decided := deciding(task, given):
        _say_defaults(task, decided)
        return {}
    recipe = task.folder / "recipe.yaml"
    if recipe.is_file() and not task.fresh:
        settings, origin = saved_recipe(task.folder), f"the run in {task.folder}"
        machine = settings.get("machine", {})
        kept = {"precision": machine.get("precision", "auto")}
        if machine.get("compile") and task.machine.kind == "cuda" and compiles():
            kept["compile"] = True
        settings = {name: value for name, value in settings.items() if name != "data"} | {"machine": kept}
        if is_import_path(settings.get("encoder")):
            raise code_refused(recipe, settings["encoder"])
    elif len(open_for_pretraining(task.data)) < FEW:
        settings, origin = settings_without_trial(task.data, task.machine, task.start), "`simclr suggest`"
        if task.machine.kind == "cpu":
            origin += ", about 15 minutes or one epoch; `simclr suggest --budget` for another time"
        settings = {name: value for name, value in settings.items() if name != "warmup_epochs"}
    else:
        return {}
    if "batch" in given:
        settings.pop("micro_batch", None)  # of another batch
    if task.machine.recompute:  # which does not go together with compilation
        settings.get("machine", {}).pop("compile", None)
    if not int(os.environ.get("LOCAL_RANK") or 0):
        print(printable(f"no recipe given: settings of {origin}"), file=sys.stderr)
    return settings


def deciding(task: Pretrain, given: set[str]) -> list[str]:
    """Return those of the settings `given` on the command line that suggested ones depend on."""
    names = {name for name in given if {name, name.partition(".")[0]} & DECIDING}
    return sorted(names | ({"channels"} if task.channels > 3 else set()))


def _say_defaults(task: Pretrain, decided: list[str]) -> None:
    """Say on the first process that the defaults, which are those of ImageNet, apply to fewer images."""
    try:
        few = len(open_for_pretraining(task.data)) < FEW
    except DataError:  # which the run raises
        return
    if not few or int(os.environ.get("LOCAL_RANK") or 0):
        return
    others = f"the other settings are the paper's for ImageNet, such as {task.epochs:g} epochs, batch {task.batch:,}"
    remedy = "`simclr suggest DATA --out FILE.yaml` and --config FILE.yaml with these flags adapt them to few images"
    print(printable(f"{', '.join(decided)} given: {others}; {remedy}"), file=sys.stderr)


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
