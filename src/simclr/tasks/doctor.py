"""Checks of data and settings in about a minute before a pretraining run, and of the log of a run."""

import math
import os
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.cli.parsing import parse
from simclr.data import Source
from simclr.data.splits import sample_rows
from simclr.data.survey import survey
from simclr.errors import SettingError
from simclr.evaluation.metrics import embedding_std
from simclr.report import checks
from simclr.report.checks import Finding
from simclr.report.reading import read_run
from simclr.report.resources import (
    bytes_of,
    check_disk,
    check_duration,
    check_memory,
    kept_for_backward,
)
from simclr.report.warnings import run_findings
from simclr.runs.environment import free_memory
from simclr.runs.files import printable, require_folder_path
from simclr.runs.recipe import is_import_path
from simclr.runs.run import Run
from simclr.settings import check_settings, flat, setting
from simclr.tasks.pretrain import Pretrain
from simclr.training.crops import draw_views
from simclr.training.fit import Parts
from simclr.training.gathering import gather
from simclr.training.gradcache import MicroBatches
from simclr.training.replay import replay
from simclr.training.sampler import BatchSampler
from simclr.training.throughput import loop_rate, memory_used, step_of
from simclr.views import by_size

IMAGES = 16  # size of the batch that the network must overfit
STEPS = 60  # maximum number of steps for it


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check in about a minute the data and settings of a pretraining run, without running it, or the log of a run.

    The command takes the settings of `simclr pretrain` and prints one line per check: ok, warning or FAILED, with the
    measured value and what to do. Images: readable, large enough, not blank, no copies. Views: the two differ, in each
    epoch too, and belong to their image. Network: initial loss, gradients, overfitting of one small batch, size of a
    step. Then schedule, batch norms, memory, duration, disk and agreement of processes. NT-Xent is used in place of
    other losses. Nothing is written.

    If DATA is a run folder, the log of the run is checked instead; with `replay`, a pretraining that diverged is
    continued from its last checkpoint, in this process alone, up to the step after which a number is not finite. The
    exit code is 1 if a check failed.
    """

    command: ClassVar[str] = "doctor"

    pretrain: Pretrain = flat("fresh", "tracker")
    sample: int = setting(512, at_least=1)
    """number of images to examine"""
    seconds: float = setting(20.0, above=0)
    """time for each measurement, seconds"""
    replay: bool = False
    """search of the step, the images and the layer at which a run diverged"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        """Print the findings and return them; `passed` is False if one of them failed."""
        run = self._run()
        if self.replay:
            if run is None:
                raise SettingError("data", "the folder of a run with --replay", str(self.pretrain.data))
            results, show = self._replay(run), print
        elif run:
            results, show = run_findings(read_run(run.path)), print
        else:
            source, _ = self.pretrain.sources()
            fabric = self.pretrain.machine.launch()
            results, show = self.examine(fabric, source), fabric.print
        findings = []
        for finding in results:
            show(finding, flush=True)
            findings.append(finding)
        levels = [finding.level for finding in findings]
        failed, warnings = levels.count("FAILED"), levels.count("warning")
        show(f"{len(findings)} checks, {failed} failed, {warnings} with a warning")
        return {"passed": not failed, "findings": [finding._asdict() for finding in findings]}

    def _run(self) -> Run | None:
        """Return the run whose folder `data` is, if it is one."""
        if not isinstance(self.pretrain.data, str | os.PathLike):
            return None
        folder = Path(self.pretrain.data)
        is_run = (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file()
        return Run(folder) if is_run else None

    def _replay(self, run: Run) -> Iterator[Finding]:
        """Find the first step after the last checkpoint of a run after which something is not finite."""
        if (kind := read_run(run.path).kind) != Pretrain.command:
            raise SettingError("replay", "given for a pretraining", f"{run.path}, a run of {kind}")
        named = [f"--encoder={self.pretrain.encoder}"] if is_import_path(self.pretrain.encoder) else []
        saved = parse(Pretrain, "pretrain", ("data",), ["--config", str(run.path / "recipe.yaml"), *named])
        task = replace(saved, machine=replace(saved.machine, devices=1, nodes=1, compile=False), out=run.path)
        source, _ = task.sources()
        fabric = task.machine.launch()
        state, schedule = run.restore(), task.schedule(len(source))
        start = 0 if state is None else state["step"]
        if (failure := replay(fabric, task.assemble(fabric, source), schedule, state, task.save_every)) is None:
            text = (
                f"{min(task.save_every, schedule.steps - start)} steps from step {start} on were repeated without fault"
            )
            yield Finding("replay", "ok", text)
            return
        images = ", ".join(printable(source.path(i)) for i in failure.indices[:3])
        others = f"{images} and {max(len(failure.indices) - 3, 0)} others"
        text = (
            f"{failure.where} is not finite in step {failure.step} (counted from 0, seed {task.seed}), images {others}"
        )
        yield Finding("replay", "FAILED", text)

    def examine(self, fabric: Fabric, source: Source) -> Iterator[Finding]:
        """Yield all checks of a run on `source`; later ones are left out where an earlier one makes them senseless."""
        task = self.pretrain
        require_folder_path(task.folder)
        world = fabric.world_size
        sampler = BatchSampler(len(source), task.batch, task.seed, 0, world)  # raises what the run would
        task.check_processes(world)
        task.check_queue(len(source))
        if task.micro_batch:
            MicroBatches(task.micro_batch).check(sampler.local)

        appearances, errors = survey(source, sample_rows(source, self.sample).tolist(), deviation=True)
        unreadable = [f"{error.path} ({error.reason})" for error in errors]
        yield checks.check_readable(len(source), len(appearances) + len(unreadable), unreadable, task.max_bad)
        if len(appearances) < 2:
            return
        yield checks.check_sizes(np.array([a.side for a in appearances]), task.view_policies[0].size)
        yield checks.check_not_blank(np.array([a.deviation for a in appearances]))
        yield checks.check_duplicates([a.digest for a in appearances], len(source))
        schedule = task.schedule(len(source))
        rates = [schedule.lr(step) for step in range(schedule.steps)]
        yield checks.check_schedule(rates, sampler.steps_per_epoch)

        images = min(max(IMAGES, 2 * world), len(appearances), task.batch) // world * world
        if not images:
            raise SettingError("sample", f"at least the number of processes ({world})", self.sample)
        subset = source.select(np.sort([a.row for a in appearances[:images]]), source.split)
        parts = self._smaller(images, replace(task.machine, compile=False), world).assemble(fabric, subset)
        norms = sum(isinstance(module, _BatchNorm) for module in parts.model.modules())
        moving = bool(task.micro_batch) and task.bn == "frozen-stats"
        fewest = min(count for count, _ in by_size(task.view_policies))
        together = 1 if task.has_local_norms else world
        yield checks.check_batch_norms(fewest * together * (task.micro_batch or sampler.local), norms, moving)
        batch, after = islice(parts.batches(range(2)), 2)
        yield from self._check_views(subset, batch, after)
        try:
            with kept_for_backward(parts.model) as kept:
                loss, outputs = parts.backward(batch)
        except RuntimeError as error:
            yield Finding("step", "FAILED", f"forward or backward pass: {' '.join(str(error).split())[:200]}")
            return
        loss = fabric.all_reduce(loss, reduce_op="mean").item()
        views = list(map(gather, outputs.z))
        yield from checks.check_initial_loss(loss, views, task.temperature, task.key_count)
        seconds = yield from self._check_learning(fabric, parts, batch)
        yield from self._check_step(fabric, parts, batch, source, max(rates))

        weights = bytes_of(parts.model)
        state = weights * (3 if task.optimizer == "adamw" else 2)  # with the optimizer's moments
        each = sum(kept) / (self._smaller(images, task.machine, world).micro_batch or images // world)
        del parts, batch, after, outputs, kept
        yield from self._check_memory(fabric, source, each, state + weights, seconds * world / images)
        existing = next(above for above in (task.folder, *task.folder.parents) if above.exists())
        # last, previous and the one being written; then the weights alone
        yield check_disk(3 * state + weights, shutil.disk_usage(existing).free, str(task.folder))

    def _smaller(self, batch: int, machine: Any, world: int) -> Pretrain:
        """Return the task with NT-Xent, views of the final size and another batch, which its micro-batches divide."""
        task = self.pretrain
        micro = math.gcd(task.micro_batch, batch // world) if task.micro_batch else 0
        plain = {"loss": "nt_xent", "normalize": True, "negatives": "both", "semi_hard": False, "queue": 0}
        plain |= {"temperature_min": None, "first_size": None}
        return replace(task, batch=batch, micro_batch=micro, machine=machine, **plain)

    def _check_views(self, source: Source, batch: Any, after: Any) -> Iterator[Finding]:
        """Check two batches of consecutive epochs."""
        task = self.pretrain
        _, now, then = np.intersect1d(batch.indices, after.indices, return_indices=True)
        images = [source.read(i) for i in batch.indices]
        sizes = np.array([image.shape[:2] for image in images])
        drawn = draw_views(task.view_policies, batch.indices, 0, task.seed, sizes)
        redrawn = (policy.apply(images, view) for policy, view in zip(task.view_policies, drawn, strict=True))
        for views, later in zip(batch.views, after.views, strict=True):
            yield from checks.check_views(views.float(), views[0, now].float(), later[0, then].float())
            yield checks.check_pairs(views.float().cpu(), torch.stack(list(islice(redrawn, len(views)))))

    def _check_learning(self, fabric: Fabric, parts: Parts, batch: Any) -> Generator[Finding, None, float]:
        """Overfit one batch with an optimizer that needs no tuning; return the seconds of a step."""
        task = self.pretrain
        optimizer = fabric.setup_optimizers(torch.optim.AdamW(parts.model.parameters(), 1e-3))
        trained = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
        reached = dict.fromkeys(trained, False)
        n = len(batch.indices) * fabric.world_size
        key_views = task.key_count
        goal = checks.learning_goal(n, task.temperature, key_views)
        losses, times, finite, start = [], [], True, time.perf_counter()
        optimizer.zero_grad()
        while len(losses) < STEPS:
            before = time.perf_counter()
            loss, outputs = parts.backward(batch)
            for name, p in trained.items():
                reached[name] |= p.grad is not None and bool(p.grad.count_nonzero())
            finite &= all(bool(p.grad.isfinite().all()) for p in trained.values() if p.grad is not None)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(fabric.all_reduce(loss, reduce_op="mean").item())
            times.append(time.perf_counter() - before)
            late = fabric.all_reduce(torch.tensor(time.perf_counter() - start), reduce_op="mean") > self.seconds
            # at least 3 steps: the weights of a block that begin at 0 keep gradients from the rest of it at first
            if len(losses) >= 3 and (losses[-1] <= goal or not math.isfinite(losses[-1]) or late):
                break
        yield checks.check_gradients(reached, finite, task.machine.precision_in_use)
        spread = embedding_std(torch.cat(outputs.z).float())
        complete = len(losses) == STEPS
        yield checks.check_overfits_one_batch(losses, n, task.temperature, spread, complete, key_views)
        return float(np.median(times))

    def _check_step(self, fabric: Fabric, parts: Parts, batch: Any, source: Source, peak: float) -> Iterator[Finding]:
        """Check one step of the run's own optimizer at its maximum learning rate, and that processes agree after it."""
        parts.backward(batch)
        trained = [p for p in parts.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        for group in parts.optimizer.param_groups:
            group["lr"] = peak
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        pairs = zip(before, trained, strict=True)
        changes = [((p.detach() - b).norm() / b.norm().clamp_min(1e-12)).item() for b, p in pairs if b.ndim > 1]
        yield checks.check_step_size(float(np.median(changes)), peak)
        if fabric.world_size > 1:
            lengths = torch.stack([p.detach().float().norm() for p in trained])
            images = torch.tensor(int(source.fingerprint[:12], 16), device=fabric.device)
            yield checks.check_processes(gather(lengths[None]), gather(images[None]))

    def _check_memory(
        self, fabric: Fabric, source: Source, each: float, fixed: int, seconds: float
    ) -> Iterator[Finding]:
        """Check memory of the whole batch and duration of the run. `each`: bytes that the backward pass of an image
        keeps; `fixed`: bytes of weights, gradients and moments; `seconds`: time of one image."""
        task, device, world = self.pretrain, fabric.device, fabric.world_size
        free = free_memory(device)
        needed = fixed + each * (task.micro_batch or task.batch // world)
        fitting = max(0, int((free - fixed) / each)) * world
        # what is measured: the batch, or as large a fraction of it as memory and time allow
        batch, unit = task.batch, max(2, world * max(1, task.micro_batch))
        while batch > unit and (
            4 * seconds * batch / world > self.seconds or fixed + each * (task.micro_batch or batch // world) > free
        ):
            batch = max(unit, batch // 2 // unit * unit)
        batch = fabric.broadcast(batch)
        try:
            parts = self._smaller(batch, task.machine, world).assemble(fabric, source)
            rate = loop_rate(parts.batches, step_of(parts), batch, device, self.seconds / 4, fabric.broadcast)
        except torch.OutOfMemoryError:
            yield check_memory(max(needed, free * 1.01), free, task.batch, fitting // 2, str(device))
            return
        if device.type == "cuda" and batch == task.batch:
            needed = 1e6 * memory_used(device)
        yield check_memory(needed, free, task.batch, fitting, str(device))
        steps = task.schedule(len(source)).steps
        yield check_duration(steps, task.batch, rate["images_per_s"], rate["data_wait"], batch)
