"""Transfer of one encoder to many data sets (Chen et al. 2020, section 4.2 and App. B.8)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from simclr.data import Source
from simclr.data.multilabel import targets
from simclr.errors import DivergedError, SettingError
from simclr.evaluation.figures import figure, hits, write_results
from simclr.evaluation.intervals import SAMPLES, permutation_test, permutation_test_of
from simclr.evaluation.linear import PROTOCOL, fit_linear
from simclr.evaluation.metrics import METRICS
from simclr.evaluation.protocol import (
    FeatureModel,
    extract_features,
    fit_device,
    models_to_evaluate,
    open_labelled,
)
from simclr.runs.files import require_file_path, require_folder_path
from simclr.runs.machine import Machine
from simclr.runs.results import Result, completed, result_of, run_folder
from simclr.settings import check_settings, setting
from simclr.tasks.finetune import FineTune
from simclr.tasks.seen_images import evaluated_images

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
MAP_SAMPLES = 1000  # number of samples of the permutation test for a metric that is computed anew for each sample


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Accuracy of an encoder on many labelled data sets by the protocols of the paper.

    linear: logistic regression by L-BFGS on frozen features with one of 45 penalties. finetune and scratch: a grid of
    learning rates and weight decays, from pretrained and from fresh weights. Settings are chosen on a tenth of the
    training images, the chosen ones are fitted on all of them, and the test images are read once afterwards.
    Multi-label data sets are measured by 11-point mean average precision.
    """

    command: ClassVar[str] = "transfer"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: list[str]
    """labelled data sets, each with a training and a test split"""
    protocols: tuple[Literal["linear", "finetune", "scratch"], ...] = ("linear",)
    """protocols to apply to each data set"""
    mean_per_class: tuple[str, ...] = ("aircraft", "pets", "caltech", "flowers")
    """data sets, by a part of their name, that are judged by mean per-class accuracy (paper, App. B.8), not by top-1"""
    against: Path | None = None
    """run folder of another encoder: the linear protocol measures it too, with the p-value of a paired permutation
    test"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4; linear protocol only"""
    lrs: tuple[float, ...] | None = setting(None, above=0)
    """learning rates of the grid, as applied (paper: 7 from 1e-4 to 0.1; from scratch 7 from 1e-3 to 1)"""
    decays: tuple[float, ...] | None = setting(None, at_least=0)
    """weight decays of the grid, before division by the learning rate (paper: 0 and 7 from 1e-6 to 1e-3; from scratch 8
    from 1e-5 to 10^-1.5)"""
    steps: int | None = setting(None, at_least=1)
    """number of steps of each fine-tuning (paper: 20,000; from scratch 40,000)"""
    batch: int = setting(256, at_least=1)
    """number of images in a step, over all processes"""
    crop_area: tuple[float, float] = setting((0.08, 1.0), above=0, at_most=1)
    """minimum and maximum area of a training crop, as fractions of the image"""
    out: Path | None = None
    """folder for the results and the fine-tuned runs; RUN/transfer if not given. An older result file keeps its content
    under a number"""
    seed: int = 0
    """seed of every random draw"""
    machine: Machine = Machine()
    """devices, processes and precision"""

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("data", "protocols", "lrs", "decays"):
            if getattr(self, name) is not None and not getattr(self, name):
                raise SettingError(name, "a list of at least one value", "an empty one")
        if self.against is not None and "linear" not in self.protocols:
            raise SettingError("against", "absent without the protocol linear, which alone measures it", self.against)

    def __call__(self) -> dict[str, Any]:
        # everything that can be refused is refused before anything is computed
        path = require_file_path(require_folder_path(self.folder) / "transfer.json")
        splits = {spec: open_labelled(spec, multilabel=True) for spec in self.data}
        names = [train.name for train, _ in splits.values()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SettingError("data", "data sets of different names, by which rows and folders are told apart", twice)
        for run in filter(None, (self.run, self.against)):
            models_to_evaluate(run, False, self.layer)
        fabric = self.machine.launch()
        pairs = [(spec, protocol) for spec in splits for protocol in self.protocols]
        tuned = {pair: self.fine_tune(pair[0], splits[pair[0]][0], pair[1]) for pair in pairs if pair[1] != "linear"}
        if not fabric.is_global_zero:  # all processes train together; the rest is computed by the first one
            return {}
        rows = [tuned[pair] if pair in tuned else self.linear(pair[0], *splits[pair[0]]) for pair in pairs]
        return write_results([result for results in rows for result in results], self, path)

    @property
    def folder(self) -> Path:
        """Folder of the results and the fine-tuned runs."""
        return self.out or run_folder(self.run) / "transfer"

    def metric(self, source: Source) -> str:
        """Return the metric by which settings are chosen and networks compared on a data set."""
        if targets(source).ndim == 2:
            return "map11"
        named = any(part.lower() in source.name.lower() for part in self.mean_per_class)
        return "mean_per_class" if named else "top1"

    def linear(self, spec: str, train: Source, test: Source) -> Iterator[Result]:
        """Yield the results of logistic regression on features of the encoder, and of the one it is compared with, for
        the data set `spec`."""
        metric = self.metric(train)
        (model,) = models_to_evaluate(self.run, False, self.layer)
        scores, answers, detail = self._classified(model, train, test, metric)
        rows = [(self.run, model, f"pretrained encoder, {train.name}", scores, detail)]
        if self.against is not None:
            (other,) = models_to_evaluate(self.against, False, self.layer)
            other = replace(other, role="baseline")
            other_scores, _, detail = self._classified(other, train, test, metric)
            p, samples = compare(scores, other_scores, answers, metric)
            detail |= {"run": str(self.against), "p": p, "samples": samples}
            rows.append((self.against, other, f"{run_folder(self.against).name}, {train.name}", other_scores, detail))
        metrics = (metric, *(m for m in ("top1", "mean_per_class") if m != metric and metric != "map11"))
        for run, model, name, scores, detail in rows:
            fields = {**model.fields, **evaluated_images(run, spec, test), "name": name, "protocol": PROTOCOL}
            for each in metrics:
                beside = {**detail, "data": train.name, "protocol": "linear"}
                yield figure(scores, answers, each, **fields, detail=beside)

    def _classified(
        self, model: FeatureModel, train: Source, test: Source, metric: str
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        (features,) = extract_features([model], train, self.machine)
        device = fit_device(features.features, self.machine)
        classifier = fit_linear(features.to(device), train, seed=self.seed, metric=metric)
        (test_features,) = extract_features([model], test, self.machine)
        answers = torch.from_numpy(targets(test))[test_features.indices]
        return classifier(test_features.features.to(device)).cpu(), answers, dict(classifier.detail)

    def fine_tune(self, spec: str, train: Source, protocol: str) -> list[Result]:
        """Train the grid on nine tenths of the training images and the chosen setting on all of them."""
        grid, metric = GRIDS[protocol], self.metric(train)
        folder = self.folder / f"{train.name}-{protocol}"
        scores: dict[tuple[float, float], float] = {}
        for lr in self.lrs or grid["lrs"]:
            for decay in self.decays or grid["decays"]:
                task = self.task(spec, train, protocol, lr, decay, folder / f"{lr:.3g}-{decay:.3g}", "held-out")
                try:
                    scores[lr, decay] = task()[metric]
                except DivergedError:  # a learning rate that is too high is a result of the grid, not a failure of it
                    scores[lr, decay] = 0.0
        lr, decay = max(scores, key=scores.__getitem__)
        content = self.task(spec, train, protocol, lr, decay, folder / "chosen", "test")()
        detail = {"lr": lr, "weight_decay": decay, f"held_out_{metric}": scores[lr, decay], "settings": len(scores)}
        rows = completed(content, "finetune")["results"]
        return [_transfer_row(row, train.name, detail, scratch=protocol == "scratch") for row in rows]

    def task(
        self, spec: str, train: Source, protocol: str, lr: float, decay: float, out: Path, measure: str
    ) -> FineTune:
        """Return one fine-tuning of the grid, with slower moving statistics of batch norm for small data sets."""
        steps = self.steps or GRIDS[protocol]["steps"]
        per_epoch = max(1, len(train) // self.batch)
        return FineTune(
            run=self.run, data=spec, out=out, from_scratch=protocol == "scratch", crop_area=self.crop_area, lr=lr,
            scaling="none", weight_decay=decay / lr, batch=self.batch, steps=steps, seed=self.seed,
            norm_decay=max(1 - 10 / per_epoch, 0.9), measure=measure, machine=self.machine,
            save_every=max(steps // 4, 1),
        )  # fmt: skip


def compare(
    ours: Float[Tensor, "n c"], others: Float[Tensor, "n c"], answers: Shaped[Tensor, "n ..."], metric: str
) -> tuple[float, int]:
    """Return the p-value of a paired permutation test of two networks' scores by `metric`, and its number of
    samples."""
    if metric == "map11":
        return permutation_test_of(METRICS[metric], ours, others, answers, samples=MAP_SAMPLES), MAP_SAMPLES
    a, b = hits(ours, answers), hits(others, answers)
    if metric == "mean_per_class":
        weight = 1 / answers.bincount().double().numpy()[answers.numpy()]
        a, b = a * weight, b * weight
    return permutation_test(a, b), SAMPLES


def _transfer_row(row: dict[str, Any], data: str, detail: dict[str, Any], *, scratch: bool) -> Result:
    """Return a result of a fine-tuning as a row of the transfer's table; training from scratch is a baseline in it."""
    result = result_of(row)
    role, protocol = ("baseline", "scratch") if scratch else (result.role, "finetune")
    detail = {**result.detail, **detail, "data": data, "protocol": protocol}
    return replace(result, name=f"{result.name}, {data}", role=role, detail=detail)
