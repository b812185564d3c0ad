"""Whether a pretraining run with these settings would go well, in about a minute, before it is started."""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.data import Source, UnreadableImage
from simclr.data.loading import try_read
from simclr.evaluation.metrics import embedding_std
from simclr.report import checks as findings
from simclr.report.checks import Finding
from simclr.report.diagnosis import diagnose
from simclr.report.resources import bytes_of, disk, duration, free_memory, kept_for_backward, memory
from simclr.runs.environment import cores
from simclr.runs.files import require_folder_path
from simclr.runs.run import Run
from simclr.tasks.pretrain import Pretrain
from simclr.training.fit import Parts
from simclr.training.gathering import gather
from simclr.training.sampler import BatchSampler
from simclr.training.throughput import loop_rate, memory_used, step_of

IMAGES = 16  # of the batch that must be learnt
STEPS = 60  # in which it must be


class Looked(NamedTuple):
    """What is noted of an image."""

    row: int
    side: int  # the shorter one, pixels
    deviation: float  # over the pixels of the channel where it is largest, in [0, 1]
    digest: bytes


@dataclass(frozen=True, kw_only=True)
class Doctor(Pretrain):
    """Check in about a minute what a pretraining run with these settings would meet, without running it.

    Takes the settings of `simclr pretrain` and prints a line a check: ok, warning or FAILED, with the number behind it
    and what to do. Images: readable, large enough, not empty, no copies. Views: both differ, in each epoch, and belong
    to their image. Network: loss at the start, gradients, one small batch learnt, the size of a step. Then schedule,
    batch norms, memory, duration, disk and agreement of processes. Other losses are stood in for by NT-Xent. Writes
    nothing.

    Where `data` is a run folder, the run's log is read instead. The exit code is 1 where a check failed.
    """

    command: ClassVar[str] = "doctor"

    out: Path | None = None
    """run folder that is meant, for the room on its disk; runs/pretrain-DATA if not given"""
    fresh: bool = False
    """of no effect here: nothing is trained that could be gone on with"""
    sample: int = 512
    """images looked at"""
    seconds: float = 20.0
    """most time for learning one batch, and again for measuring the rate"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sample", "seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def __call__(self) -> dict[str, Any]:
        """Print the findings as they come and return them; `passed` is False where one of them failed."""
        if run := self._run():
            checks, show = diagnose(run.metrics(), run.result is not None), print
        else:
            source, _ = self.sources()
            fabric = self.machine.launch()
            checks, show = self.examine(fabric, source), fabric.print
        found = []
        for one in checks:
            show(one, flush=True)
            found.append(one)
        levels = [one.level for one in found]
        failed, warnings = levels.count("FAILED"), levels.count("warning")
        show(f"{len(found)} checks, {failed} failed, {warnings} with a warning")
        return {"passed": not failed, "findings": [one._asdict() for one in found]}

    def _run(self) -> Run | None:
        """The run that `data` is the folder of."""
        if not isinstance(self.data, str | os.PathLike):
            return None
        recipe = Path(self.data) / "recipe.yaml"
        return Run(Path(self.data)) if recipe.is_file() and (Path(self.data) / "metrics.jsonl").is_file() else None

    def examine(self, fabric: Fabric, source: Source) -> Iterator[Finding]:
        """All checks of a run over `source`; later ones are left out where an earlier one makes them senseless."""
        require_folder_path(self.folder)
        world = fabric.world_size
        order = BatchSampler(len(source), self.batch, self.seed, 0, world)  # complains as the run would
        if self.micro_batch and order.local % self.micro_batch:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must divide the {order.local} images of a process")

        looked, bad = self._look(source)
        yield findings.readable(len(source), len(looked) + len(bad), bad, self.max_bad)
        if len(looked) < 2:
            return
        yield findings.large_enough(np.array([one.side for one in looked]), self.views.size)
        yield findings.show_something(np.array([one.deviation for one in looked]))
        yield findings.different([one.digest for one in looked], len(source))
        plan = self.schedule(len(source))
        rates = [plan.lr(step) for step in range(plan.steps)]
        yield findings.schedule(rates, order.steps_per_epoch)

        images = min(max(IMAGES, 2 * world), len(looked), self.batch) // world * world
        if not images:
            raise ValueError(f"sample is {self.sample}; at least one image for each of the {world} processes is needed")
        chosen = source.select(np.sort([one.row for one in looked[:images]]), source.split)
        parts = self._smaller(images, replace(self.machine, compile=False), world).assemble(fabric, chosen)
        norms = sum(isinstance(module, _BatchNorm) for module in parts.model.modules())
        moving = bool(self.micro_batch) and self.bn == "frozen-stats"
        yield findings.batch_norms(2 * world * (self.micro_batch or order.local), norms, moving)
        batch, after = islice(parts.batches(range(2)), 2)
        yield from self._views(chosen, batch, after)
        try:
            with kept_for_backward(parts.model) as kept:
                loss, outputs = parts.backward(batch)
        except RuntimeError as error:
            yield Finding("step", "FAILED", f"forward or backward pass: {' '.join(str(error).split())[:200]}")
            return
        loss = fabric.all_reduce(loss, reduce_op="mean").item()
        yield from findings.start(loss, gather(outputs.z_a), gather(outputs.z_b), self.temperature)
        seconds = yield from self._learning(fabric, parts, batch)
        yield from self._step(fabric, parts, batch, source, max(rates))

        weights = bytes_of(parts.model)
        state = weights * (3 if self.optimizer == "adamw" else 2)  # with the optimizer's moments
        each = sum(kept) / (self._smaller(images, self.machine, world).micro_batch or images // world)
        del parts, batch, after, outputs, kept
        yield from self._room(fabric, source, order.local, each, state + weights, seconds * world / images)
        there = next(above for above in (self.folder, *self.folder.parents) if above.exists())
        # last, previous and the one being written; then the weights alone
        yield disk(3 * state + weights, shutil.disk_usage(there).free, str(self.folder))

    def _look(self, source: Source) -> tuple[list[Looked], list[str]]:
        """A sample by hashes of names, and what is wrong with the unreadable ones of it."""
        rows = np.argsort(source.paths.hashes(), kind="stable")[: self.sample]

        def look(row: int) -> Looked | str:
            image = try_read(source, row)
            if isinstance(image, UnreadableImage):
                return f"{image.path} ({image.reason})"
            digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(image))
            return Looked(row, min(image.shape[:2]), float(image.std((0, 1)).max()) / 255, digest.digest())

        with ThreadPoolExecutor(cores()) as pool:
            found = list(pool.map(look, rows.tolist()))
        return [one for one in found if isinstance(one, Looked)], [one for one in found if isinstance(one, str)]

    def _smaller(self, batch: int, machine: Any, world: int) -> "Doctor":
        """The same with another batch, in which micro-batches still go, and with NT-Xent."""
        micro = math.gcd(self.micro_batch, batch // world) if self.micro_batch else 0
        return replace(
            self, batch=batch, micro_batch=micro, machine=machine,
            loss="nt_xent", normalize=True, negatives="both", semi_hard=False,
        )  # fmt: skip

    def _views(self, source: Source, batch: Any, after: Any) -> Iterator[Finding]:
        _, now, then = np.intersect1d(batch.indices, after.indices, return_indices=True)
        yield from findings.views_vary(batch.views.float(), batch.views[0, now].float(), after.views[0, then].float())
        images = [source.read(i) for i in batch.indices]
        sizes = np.array([image.shape[:2] for image in images])
        drawn = self.views.draw_all(batch.indices, 0, 2, self.seed, sizes)
        expected = torch.stack([self.views.apply(images, one) for one in drawn])
        yield findings.views_belong(batch.views.float().cpu(), expected)

    def _learning(self, fabric: Fabric, parts: Parts, batch: Any) -> Iterator[Finding]:
        """One batch again and again, by an optimizer that needs no tuning. Returns the seconds of a step."""
        optimizer = fabric.setup_optimizers(torch.optim.AdamW(parts.model.parameters(), 1e-3))
        named = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
        reached = dict.fromkeys(named, False)
        n = len(batch.indices) * fabric.world_size
        goal = math.log(2 * n - 1) * (1 - findings.LEARNT) + findings.LEARNT * findings.least_loss(n, self.temperature)
        losses, times, finite, begun = [], [], True, time.perf_counter()
        optimizer.zero_grad()
        while len(losses) < STEPS:
            before = time.perf_counter()
            loss, outputs = parts.backward(batch)
            for name, p in named.items():
                reached[name] |= p.grad is not None and bool(p.grad.count_nonzero())
            finite = all(bool(p.grad.isfinite().all()) for p in named.values() if p.grad is not None)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(fabric.all_reduce(loss, reduce_op="mean").item())
            times.append(time.perf_counter() - before)
            up = fabric.all_reduce(torch.tensor(time.perf_counter() - begun), reduce_op="mean") > self.seconds
            # 3 steps and more: the weights of a block that begin at 0 keep gradients from the rest of it at first
            if len(losses) >= 3 and (losses[-1] <= goal or not math.isfinite(losses[-1]) or up):
                break
        yield findings.gradients(reached, finite, self.machine.precision)
        spread = embedding_std(torch.cat([outputs.z_a, outputs.z_b]).float())
        yield findings.learns(losses, n, self.temperature, spread, len(losses) == STEPS)
        return float(np.median(times))

    def _step(self, fabric: Fabric, parts: Parts, batch: Any, source: Source, peak: float) -> Iterator[Finding]:
        """One step of the run's own optimizer, at the highest rate of the run; and whether processes agree then."""
        parts.backward(batch)
        before = [p.detach().clone() for p in parts.model.parameters()]
        for group in parts.optimizer.param_groups:
            group["lr"] = peak
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        pairs = zip(before, parts.model.parameters(), strict=True)
        changes = [((p.detach() - b).norm() / b.norm().clamp_min(1e-12)).item() for b, p in pairs if b.ndim > 1]
        yield findings.step_size(float(np.median(changes)), peak)
        if fabric.world_size > 1:
            lengths = torch.stack([p.detach().float().norm() for p in parts.model.parameters()])
            seen = torch.tensor(int(source.fingerprint[:12], 16), device=fabric.device)
            yield findings.agreement(gather(lengths[None]), gather(seen[None]))

    def _room(
        self, fabric: Fabric, source: Source, local: int, each: float, fixed: int, seconds: float
    ) -> Iterator[Finding]:
        """Memory of the whole batch and duration of the run. `each`: bytes that an image's backward pass keeps;
        `fixed`: bytes of weights, gradients and moments; `seconds`: of an image's step."""
        device, world = fabric.device, fabric.world_size
        there = free_memory(device)
        needed = fixed + each * (self.micro_batch or local)
        fitting = max(0, int((there - fixed) / each)) * world
        # what is measured: the batch, or as large a part of it as there is room and time for
        batch, unit = self.batch, world * max(1, self.micro_batch)
        while batch > unit and (
            4 * seconds * batch / world > self.seconds or fixed + each * (self.micro_batch or batch // world) > there
        ):
            batch = max(unit, batch // 2 // unit * unit)
        batch = fabric.broadcast(batch)
        smaller = self._smaller(batch, self.machine, world)
        try:
            parts = smaller.assemble(fabric, source)
            rate = loop_rate(parts.batches, step_of(parts), batch, device, self.seconds / 4, fabric.broadcast)
        except torch.OutOfMemoryError:
            yield memory(max(needed, there * 1.01), there, self.batch, fitting // 2, str(device))
            return
        if device.type == "cuda" and batch == self.batch:
            needed = 1e6 * memory_used(device)
        yield memory(needed, there, self.batch, fitting, str(device))
        steps = self.schedule(len(source)).steps
        yield duration(steps, self.batch, rate["images_per_s"], rate["data_wait"], batch)
