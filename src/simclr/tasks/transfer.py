"""Transfer of one encoder to many data sets (Chen et al. 2020, section 4.2 and App. B.8)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from simclr.data import Source
from simclr.data.multilabel import class_names, targets
from simclr.data.splits import holdout_mask
from simclr.evaluation.figures import Result, hits, report
from simclr.evaluation.intervals import SAMPLES, permutation_test, permutation_test_of
from simclr.evaluation.logistic import PENALTIES, choose_and_refit
from simclr.evaluation.metrics import METRICS
from simclr.evaluation.protocol import Candidate, candidates, labelled, workplace
from simclr.runs.files import require_file_path, require_folder_path
from simclr.runs.machine import Machine
from simclr.tasks.finetune import FineTune

GRIDS: dict[str, dict[str, Any]] = {
    "finetune": {
        "steps": 20_000,
        "lrs": tuple(np.logspace(-4, -1, 7).tolist()),
        "decays": (0.0, *np.logspace(-6, -3, 7).tolist()),
    },
    "scratch": {
        "steps": 40_000,
        "lrs": tuple(np.logspace(-3, 0, 7).tolist()),
        "decays": tuple(np.logspace(-5, -1.5, 8).tolist()),
    },
}
MAP_SAMPLES = 1000  # of the permutation test where the metric has to be computed anew for each


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Measure an encoder on many labelled data sets by the protocols of the paper.

    linear: logistic regression by L-BFGS on frozen features, 45 penalties. finetune and scratch: a grid of learning
    rates and weight decays, pretrained and from fresh weights. Settings are chosen on a tenth of the training images
    and the chosen one is fitted on all of them; then the test images are read, once. Data sets whose images show
    several classes are measured by 11-point mean average precision.
    """

    command: ClassVar[str] = "transfer"

    run: Path
    """run folder of the encoder"""
    data: list[str]
    """labelled data sets, each with a training and a test part"""
    protocols: tuple[Literal["linear", "finetune", "scratch"], ...] = ("linear",)
    """what is done on each data set"""
    mean_per_class: tuple[str, ...] = ("aircraft", "pets", "caltech", "flowers")
    """data sets, by part of their name, judged by mean per-class accuracy (paper, App. B.8); others by top-1"""
    against: Path | None = None
    """run folder of another encoder: the linear protocol adds it, and the probability that chance alone parts them"""
    layer: str = "h"
    """linear: what is classified"""
    lrs: tuple[float, ...] | None = None
    """learning rates of the grid, as they are applied; paper: 7 from 1e-4 to 0.1, from scratch 1e-3 to 1"""
    decays: tuple[float, ...] | None = None
    """weight decays of the grid, before they are divided by the learning rate; paper: none and 7 from 1e-6 to 1e-3,
    from scratch 8 from 1e-5 to 10^-1.5"""
    steps: int | None = None
    """steps of each fine-tuning; paper 20,000, from scratch 40,000"""
    batch: int = 256
    """images in a step"""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """least and largest area of a training crop, fractions of the image"""
    out: Path | None = None
    """folder for results and fine-tuned runs; RUN/transfer if not given"""
    seed: int = 0
    """of the held-out choice and of all training"""
    machine: Machine = Machine()
    """devices, precision and workers"""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("transfer needs at least one data set")
        if self.batch < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"batch and steps must be at least 1, got {self.batch} and {self.steps}")
        for name in ("lrs", "decays"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must hold at least one value")

    def __call__(self) -> dict[str, Any]:
        # all complain before anything is computed
        path = require_file_path(require_folder_path(self.folder) / "transfer.json")
        parts = {spec: labelled(spec, several=True) for spec in self.data}
        for run in filter(None, (self.run, self.against)):
            candidates(run, False, self.layer)
        fabric = self.machine.launch()
        pairs = [(spec, protocol) for spec in parts for protocol in self.protocols]
        tuned = {pair: self.tuned(pair[0], parts[pair[0]][0], pair[1]) for pair in pairs if pair[1] != "linear"}
        if not fabric.is_global_zero:  # all processes train together; the rest is the work of one
            return {}
        rows = [tuned[pair] if pair in tuned else self.linear(*parts[pair[0]]) for pair in pairs]
        return report([result for several in rows for result in several], self, path)

    @property
    def folder(self) -> Path:
        """Where results and fine-tuned runs are kept."""
        return self.out or self.run / "transfer"

    def metric(self, source: Source) -> str:
        """The figure by which settings are chosen and networks compared on a data set."""
        if targets(source).ndim == 2:
            return "map11"
        named = any(part.lower() in source.name.lower() for part in self.mean_per_class)
        return "mean_per_class" if named else "top1"

    def linear(self, train: Source, test: Source) -> Iterator[Result]:
        """Logistic regression on the features of the encoder, and of the one it is compared with."""
        metric = self.metric(train)
        (candidate,) = candidates(self.run, False, self.layer)
        scores, answers, facts = self._classified(candidate, train, test, metric)
        rows = {f"pretrained encoder, {train.name}": (scores, facts)}
        if self.against is not None:
            (other,) = candidates(self.against, False, self.layer)
            theirs, _, others = self._classified(other, train, test, metric)
            p, samples = compare(scores, theirs, answers, metric)
            others |= {"run": str(self.against), "p": p, "samples": samples}
            rows[f"{self.against.name}, {train.name}"] = theirs, others
        for name, (found, detail) in rows.items():
            for each in (metric, *(m for m in ("top1", "mean_per_class") if m != metric and metric != "map11")):
                yield Result.of(name, "linear, L-BFGS", found, answers, each, **detail, data=train.name)

    def _classified(
        self, candidate: Candidate, train: Source, test: Source, metric: str
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        known = candidate.features(train, self.machine)
        place = workplace(known.features, self.machine)
        features, wanted = known.features.to(place), torch.from_numpy(targets(train))[known.indices].to(place)
        size = features.std(0).square().mean().sqrt()
        held_out = holdout_mask(train, seed=self.seed)[known.indices.numpy()]
        classifier, scores = choose_and_refit(
            features / size, wanted, held_out, len(class_names(train)), PENALTIES, METRICS[metric]
        )
        unseen = candidate.features(test, self.machine)
        detail = {"penalty": classifier.penalty, f"held_out_{metric}": scores[classifier.penalty]}
        answers = torch.from_numpy(targets(test))[unseen.indices]
        return classifier(unseen.features.to(place) / size).cpu(), answers, {**candidate.facts, **detail}

    def tuned(self, spec: str, train: Source, protocol: str) -> list[Result]:
        """The grid on nine tenths of the training images, the chosen setting on all of them."""
        grid, metric = GRIDS[protocol], self.metric(train)
        folder = self.folder / f"{train.name}-{protocol}"
        found: dict[tuple[float, float], float] = {}
        for lr in self.lrs or grid["lrs"]:
            for decay in self.decays or grid["decays"]:
                task = self.task(spec, train, protocol, lr, decay, folder / f"{lr:.3g}-{decay:.3g}", "held-out")
                try:
                    found[lr, decay] = task()[metric]
                except FloatingPointError:  # too high a rate is a finding of the grid, not a failure of it
                    found[lr, decay] = 0.0
        lr, decay = max(found, key=found.__getitem__)
        content = self.task(spec, train, protocol, lr, decay, folder / "chosen", "test")()
        detail = {"lr": lr, "weight_decay": decay, f"held_out_{metric}": found[lr, decay], "settings": len(found)}
        return [_read(row, train.name, detail) for row in content["results"]]

    def task(
        self, spec: str, train: Source, protocol: str, lr: float, decay: float, out: Path, measure: str
    ) -> FineTune:
        """One fine-tuning of the grid, with the moving statistics of batch norm slowed for small data sets."""
        steps = self.steps or GRIDS[protocol]["steps"]
        per_epoch = max(1, len(train) // self.batch)
        return FineTune(
            run=self.run, data=spec, out=out, from_scratch=protocol == "scratch", crop_area=self.crop_area, lr=lr,
            scaling="none", weight_decay=decay / lr, batch=self.batch, steps=steps, seed=self.seed,
            norm_decay=max(1 - 10 / per_epoch, 0.9), measure=measure, machine=self.machine,
            save_every=max(steps // 4, 1),
        )  # fmt: skip


def compare(
    ours: Float[Tensor, "n c"], theirs: Float[Tensor, "n c"], answers: Shaped[Tensor, "n ..."], metric: str
) -> tuple[float, int]:
    """Probability that networks which are equally good differ as much in `metric`, and the samples it rests on."""
    if metric == "map11":
        return permutation_test_of(METRICS[metric], ours, theirs, answers, samples=MAP_SAMPLES), MAP_SAMPLES
    a, b = hits(ours, answers), hits(theirs, answers)
    if metric == "mean_per_class":
        weight = 1 / answers.bincount().double().numpy()[answers.numpy()]
        a, b = a * weight, b * weight
    return permutation_test(a, b), SAMPLES


def _read(row: dict[str, Any], data: str, detail: dict[str, Any]) -> Result:
    """A result of a fine-tuning as a row of the transfer's table."""
    fields = {name: row[name] for name in Result.__dataclass_fields__ if name in row}
    fields |= {"name": f"{row['name']}, {data}", "interval": tuple(row["interval"])}
    return Result(**{**fields, "detail": {**row["detail"], **detail, "data": data}})
