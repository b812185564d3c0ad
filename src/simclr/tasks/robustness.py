"""Accuracy and calibration of a classifier on corrupted images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from torch import Tensor

from simclr.data import Source
from simclr.data.splits import holdout_mask, sample
from simclr.evaluation.calibration import calibration_error, fit_temperature
from simclr.evaluation.features import eval_batches, extract
from simclr.evaluation.figures import FROZEN, Result, report
from simclr.evaluation.intervals import bootstrap_interval
from simclr.evaluation.logistic import choose_and_refit, fit_path
from simclr.evaluation.protocol import describe, labelled, workplace
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.runs.machine import Machine
from simclr.runs.results import destination
from simclr.views.corruptions import KINDS, SEVERITIES, corrupt

CLEAN = ("clean", 0)
Cell = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Top-1 on test images under twelve corruptions at five severities, made here, and the calibration error before
    and after temperature scaling.

    A fine-tuned run is measured with its own classifier, any other with logistic regression on h of the training
    images. The temperature is chosen on training images the classifier was not fitted on; a fine-tuned run has such
    images if it was made with `--measure held-out`, and is else measured without scaling.
    """

    command: ClassVar[str] = "robustness"

    run: Path
    """run folder of the encoder"""
    data: str
    """labelled images with a training and a test part"""
    images: int = 10_000
    """most test images, told by hashes of their names"""
    out: Path | None = None
    """file for the result; RUN/robustness.json if not given"""
    seed: int = 0
    """of the corruptions and the held-out choice"""
    machine: Machine = Machine()
    """device and workers"""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")

    def __call__(self) -> dict[str, Any]:
        path = destination(self)
        train, test = labelled(self.data)
        test = sample(test, self.images)
        encoder = load(self.run).to(self.machine.kind)
        own = encoder.card.supervised is not None
        network, temperature = (self._own if own else self._linear)(encoder, train)
        found = self.measure(network, test, encoder, temperature or 1.0)
        return report(self.results(found, encoder, own, temperature), self, path)

    def _linear(self, encoder: Encoder, train: Source) -> tuple[Callable[[Tensor], Tensor], float]:
        known = extract(
            encoder.network, train, encoder.preprocess, device=self.machine.kind, workers=self.machine.worker_processes
        )
        place = workplace(known.features, self.machine)
        known, classes = known.to(place), len(train.classes)
        size = known.features.std(0).square().mean().sqrt()
        features = known.features / size
        held_out = holdout_mask(train, seed=self.seed)[known.indices.numpy()]
        classifier, _ = choose_and_refit(features, known.labels, held_out, classes)
        aside = torch.from_numpy(held_out).to(place)
        partial = fit_path(features[~aside], known.labels[~aside], classes, [classifier.penalty])[0]
        temperature = fit_temperature(partial(features[aside]), known.labels[aside])
        return lambda images: classifier(encoder.network(images).float().to(place) / size).cpu(), temperature

    def _own(self, encoder: Encoder, train: Source) -> tuple[Callable[[Tensor], Tensor], float | None]:
        network = load_classifier(self.run).to(self.machine.kind)
        classes = network.classifier.out_features
        if classes != len(train.classes):
            raise ValueError(f"{self.run} tells {classes} classes apart, {train.name} has {len(train.classes)}")
        names = encoder.card.supervised.get("names", train.classes)  # official checkpoints hold none
        for k, (own, theirs) in enumerate(zip(names, train.classes, strict=True)):
            if own != theirs:
                raise ValueError(f"class {k} of {self.run} is {own!r}, that of {train.name} is {theirs!r}")
        recipe = self.run / "recipe.yaml"
        recipe = yaml.safe_load(recipe.read_text("utf-8")) if recipe.is_file() else {}  # a converted run has none
        if recipe.get("measure") != "held-out":
            return lambda images: network(images).float().cpu(), None
        rows = np.flatnonzero(holdout_mask(train, seed=recipe["seed"]))
        aside = extract(network, train.select(rows, train.split), encoder.preprocess, device=self.machine.kind)
        return lambda images: network(images).float().cpu(), fit_temperature(aside.features, aside.labels)

    @torch.inference_mode()
    def measure(
        self, network: Callable[[Tensor], Tensor], test: Source, encoder: Encoder, temperature: float
    ) -> dict[Cell, Tensor]:
        """{(corruption, severity): (n, 3)}: hit, confidence, confidence after scaling. Each image is read once."""
        cells = [CLEAN, *((kind, severity) for kind in KINDS for severity in SEVERITIES)]
        found: dict[Cell, list[Tensor]] = {cell: [] for cell in cells}
        dtype = next((p.dtype for p in encoder.network.parameters()), torch.float32)
        for indices, images in eval_batches(test, encoder.preprocess, workers=self.machine.worker_processes):
            images = images.to(self.machine.kind)
            labels = torch.from_numpy(test.labels[indices])
            for kind, severity in cells:
                shown = images if (kind, severity) == CLEAN else corrupt(images, kind, severity, indices, self.seed)
                scores = network(shown.to(dtype))
                sure, sober = scores.softmax(1).max(1).values, (scores / temperature).softmax(1).max(1).values
                found[kind, severity].append(torch.stack([scores.argmax(1) == labels, sure, sober], 1))
        if not found[CLEAN]:
            raise ValueError(f"{test.name}: no image can be read")
        return {cell: torch.cat(rows) for cell, rows in found.items()}

    def results(
        self, found: dict[Cell, Tensor], encoder: Encoder, own: bool, temperature: float | None
    ) -> list[Result]:
        """A row for clean images, for each corruption over its severities, for all, and for calibration."""
        name = "its own classifier" if own else "linear classifier on h"
        n = len(found[CLEAN])
        common = {
            "name": name, "n": n, "frozen": "everything" if own else FROZEN, "layer": "scores" if own else "h",
            "transform": describe(encoder.preprocess),
        }  # fmt: skip

        def accuracy_of(protocol: str, cells: list[Cell]) -> Result:
            hits = torch.stack([found[cell][:, 0] for cell in cells]).double().mean(0).numpy()
            by_severity = {str(s): found[k, s][:, 0].mean().item() for k, s in cells} if len(cells) == 5 else {}
            return Result(
                protocol=protocol, metric="top1", value=float(hits.mean()), interval=bootstrap_interval(hits),
                detail={"by_severity": by_severity} if by_severity else {}, **common,
            )  # fmt: skip

        def error_of(protocol: str, column: int, cells: list[Cell], **detail: Any) -> Result:
            errors = [calibration_error(found[cell][:, column], found[cell][:, 0] > 0) for cell in cells]
            return Result(
                protocol=protocol, metric="ece", value=float(np.mean(errors)), interval=None, interval_of="none",
                detail=detail, **common,
            )  # fmt: skip

        corrupted = [cell for cell in found if cell != CLEAN]
        rows = [accuracy_of("clean", [CLEAN])]
        rows += [accuracy_of(kind, [(kind, severity) for severity in SEVERITIES]) for kind in KINDS]
        rows += [accuracy_of("all corruptions", corrupted), error_of("calibration, clean", 1, [CLEAN])]
        rows += [error_of("calibration, all corruptions", 1, corrupted)]
        if temperature is not None:
            rows += [
                error_of("calibration, clean, scaled", 2, [CLEAN], temperature=temperature),
                error_of("calibration, all corruptions, scaled", 2, corrupted, temperature=temperature),
            ]
        return rows
