"""Accuracy and calibration of a classifier on corrupted images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from simclr.data import Source
from simclr.data.splits import holdout_mask, sample
from simclr.errors import DataError
from simclr.evaluation.calibration import calibration_error, fit_temperature
from simclr.evaluation.features import EvalBatches, extract
from simclr.evaluation.figures import write_results
from simclr.evaluation.intervals import bootstrap_interval
from simclr.evaluation.linear import fit_linear
from simclr.evaluation.protocol import describe, fit_device, open_labelled
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.runs.machine import Device
from simclr.runs.recipe import saved_recipe
from simclr.runs.results import FROZEN, Result, result_path, run_folder, unit_of
from simclr.settings import check_settings, setting
from simclr.tasks.seen_images import evaluated_images
from simclr.views.corruptions import KINDS, SEVERITIES, corrupt

CLEAN = ("clean", 0)
Cell = tuple[str, int]  # corruption and severity


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Top-1 accuracy under twelve corruptions at five severities, and the calibration error before and after
    temperature scaling.

    A fine-tuned run is measured with its own classifier, any other with logistic regression on h of the training
    images. The temperature is chosen on training images on which the classifier was not fitted. A fine-tuned run has
    such images if it was made with `--measure held-out`; otherwise it is measured without scaling.
    """

    command: ClassVar[str] = "robustness"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: str
    """labelled images with a training and a test split"""
    images: int = setting(10_000, at_least=1)
    """maximum number of test images, chosen by a hash of the file name"""
    out: Path | None = None
    """result file; RUN/robustness.json if not given. An older file keeps its content under a number"""
    seed: int = 0
    """seed of every random draw"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        path = result_path(self)
        train, test = open_labelled(self.data)
        test = sample(test, self.images)
        encoder = load(self.run).to(self.machine.kind)
        encoder.require_rgb(self.run, self.command)
        has_classifier = encoder.card.supervised is not None
        network, temperature = (self._own_classifier if has_classifier else self._linear)(encoder, train)
        predictions = self.measure(network, test, encoder, temperature or 1.0)
        common = {
            "name": "its own classifier" if has_classifier else "linear classifier on h",
            "frozen": "everything" if has_classifier else FROZEN, "layer": "scores" if has_classifier else "h",
            "transform": describe(encoder.preprocess), **evaluated_images(self.run, self.data, test),
        }  # fmt: skip
        return write_results(rows_of(predictions, temperature, common), self, path)

    def _linear(self, encoder: Encoder, train: Source) -> tuple[Callable[[Tensor], Tensor], float]:
        device, workers = self.machine.kind, self.machine.worker_processes
        features = extract(encoder.network, train, encoder.preprocess, device=device, workers=workers)
        place = fit_device(features.features, self.machine)
        features, classes = features.to(place), len(train.classes)
        classifier = fit_linear(features, train, seed=self.seed)
        temperature = fit_temperature(*classifier.held_out_scores(features, classes))
        return lambda images: classifier(encoder.network(images).float().to(place)).cpu(), temperature

    def _own_classifier(self, encoder: Encoder, train: Source) -> tuple[Callable[[Tensor], Tensor], float | None]:
        network = load_classifier(self.run).to(self.machine.kind)
        self._check_classes(encoder, network.classifier.out_features, train)
        recipe = saved_recipe(run_folder(self.run))  # a converted checkpoint has none
        if recipe.get("measure") != "held-out":
            return lambda images: network(images).float().cpu(), None
        rows = np.flatnonzero(holdout_mask(train, seed=recipe["seed"]))
        held_out = extract(
            network, train.select(rows, train.split), encoder.preprocess, device=self.machine.kind,
            workers=self.machine.worker_processes,
        )  # fmt: skip
        return lambda images: network(images).float().cpu(), fit_temperature(held_out.features, held_out.labels)

    def _check_classes(self, encoder: Encoder, classes: int, train: Source) -> None:
        if classes != len(train.classes):
            raise DataError(train.name, f"has {len(train.classes)} classes, the classifier of {self.run} has {classes}")
        names = encoder.card.supervised.get("names", train.classes)  # official checkpoints hold no names
        for k, (expected, name) in enumerate(zip(names, train.classes, strict=True)):
            if name != expected:
                raise DataError(train.name, f"its class {k} is {name!r}, that of {self.run} is {expected!r}")

    @torch.inference_mode()
    def measure(
        self, network: Callable[[Tensor], Tensor], test: Source, encoder: Encoder, temperature: float
    ) -> dict[Cell, Tensor]:
        """Return {(corruption, severity): (n, 3)}: hit, confidence, confidence after scaling. Each image is read
        once."""
        cells = [CLEAN, *((kind, severity) for kind in KINDS for severity in SEVERITIES)]
        predictions: dict[Cell, list[Tensor]] = {cell: [] for cell in cells}
        dtype = next((p.dtype for p in encoder.network.parameters()), torch.float32)
        for indices, images in EvalBatches(test, encoder.preprocess, workers=self.machine.worker_processes):
            images = images.to(self.machine.kind)
            labels = torch.from_numpy(test.labels[indices])
            for kind, severity in cells:
                shown = images if (kind, severity) == CLEAN else corrupt(images, kind, severity, indices, self.seed)
                scores = network(shown.to(dtype))
                raw, scaled = scores.softmax(1).max(1).values, (scores / temperature).softmax(1).max(1).values
                predictions[kind, severity].append(torch.stack([scores.argmax(1) == labels, raw, scaled], 1))
        if not predictions[CLEAN]:
            raise DataError(test.name, "no image can be read", "simclr scan lists the reasons")
        return {cell: torch.cat(rows) for cell, rows in predictions.items()}


def rows_of(predictions: dict[Cell, Tensor], temperature: float | None, common: dict[str, Any]) -> list[Result]:
    """Return the results of clean images, of each corruption over its severities, of all, and of calibration."""
    common = {**common, "n": len(predictions[CLEAN])}

    def accuracy_of(protocol: str, cells: list[Cell]) -> Result:
        hits = torch.stack([predictions[cell][:, 0] for cell in cells]).double().mean(0).numpy()
        by_severity = {str(s): predictions[k, s][:, 0].mean().item() for k, s in cells} if len(cells) == 5 else {}
        return Result(
            protocol=protocol, metric="top1", value=float(hits.mean()), interval=bootstrap_interval(hits),
            detail={"by_severity": by_severity} if by_severity else {}, **common,
        )  # fmt: skip

    def error_of(protocol: str, column: int, cells: list[Cell], **detail: Any) -> Result:
        errors = [calibration_error(predictions[cell][:, column], predictions[cell][:, 0] > 0) for cell in cells]
        return Result(
            protocol=protocol, metric="ece", value=float(np.mean(errors)), unit=unit_of("ece"), interval_of="none",
            detail=detail, **common,
        )  # fmt: skip

    corrupted = [cell for cell in predictions if cell != CLEAN]
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
