"""Accuracy of a linear classifier on features of a frozen encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from simclr.data.splits import holdout_mask
from simclr.evaluation.figures import Result, report
from simclr.evaluation.logistic import PENALTIES, choose_and_refit
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.protocol import Measured, candidates, labelled, workplace
from simclr.evaluation.sgd_probe import Probes, sgd_probes
from simclr.models.layers import layer_names
from simclr.models.pretrained import load
from simclr.runs.machine import Machine
from simclr.runs.results import destination

NAMES = {"lbfgs": "linear, L-BFGS", "sgd": "linear, SGD", "bank": "linear, bank of SGD"}


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear classifier on features of a frozen encoder, shown beside raw pixels and the untrained network.

    `lbfgs`: multinomial logistic regression with an L2 penalty out of 45 (paper, App. B.8), chosen on a tenth of
    the training images, refitted on all of them. `sgd`: the official momentum recipe, on features of centre crops
    (with crops and flips: `simclr finetune --freeze encoder`). `bank`: that recipe at every pair of a learning rate
    and a weight decay, trained in one pass over nine tenths of the training images, chosen on the last tenth, and the
    chosen one trained again on all. The test images are read once, after every choice is made.
    """

    command: ClassVar[str] = "linear"

    run: Path
    """run folder of the encoder"""
    data: str
    """labelled images with a training and a test part"""
    protocol: Literal["lbfgs", "sgd", "bank"] = "lbfgs"
    """how the classifier is fitted"""
    layer: str = "h"
    """what is classified: h, z, head.1 and on, block_group1 to 4 (averaged over positions), or all of them in turn"""
    lr: float = 0.1
    """sgd only: learning rate per 256 images (official 0.1)"""
    batch: int = 512
    """sgd and bank: images in a step"""
    epochs: int = 100
    """sgd and bank: passes over the training images (official 100 on CIFAR-10, 90 on ImageNet)"""
    weight_decay: float = 0.0
    """sgd only: of the classifier's weights (official 0 on CIFAR-10, 1e-6 on ImageNet)"""
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """bank only: learning rates per 256 images"""
    decays: tuple[float, ...] = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
    """bank only: weight decays, tried with every learning rate"""
    baselines: bool = True
    """also measure raw pixels and the untrained network"""
    out: Path | None = None
    """file for the result; RUN/linear.json if not given"""
    seed: int = 0
    """of the held-out choice and of the order of sgd"""
    machine: Machine = Machine()
    """device and workers"""

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("lrs", "decays"):
            if not getattr(self, name):
                raise ValueError(f"{name} must hold at least one value")

    def __call__(self) -> dict[str, Any]:
        path = destination(self)
        train, test = labelled(self.data)
        held_out = holdout_mask(train, seed=self.seed)
        results = []
        for layer in self.layers():
            for candidate in candidates(self.run, self.baselines, layer):
                known = candidate.features(train, self.machine)
                place = workplace(known.features, self.machine)
                classifier, detail = self.classifier(
                    known.to(place), held_out[known.indices.numpy()], len(train.classes)
                )
                unseen = candidate.features(test, self.machine)
                scores = classifier(unseen.features.to(place)).cpu()
                facts = {**candidate.facts, **detail, "width": known.features.shape[1]}
                results.append(Result.of(candidate.name, NAMES[self.protocol], scores, unseen.labels, **facts))
        return report(results, self, path)

    def layers(self) -> list[str]:
        """The layers to measure, by name."""
        if self.layer != "all":
            return [self.layer]
        encoder = load(self.run)
        return layer_names(encoder.network, encoder.head)

    def classifier(
        self, known: Measured, held_out: np.ndarray, classes: int
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """Return the fitted classifier, and a record of the fit."""
        match self.protocol:
            case "sgd":
                return self._trained(known, classes, self.lr, self.weight_decay), {}
            case "bank":
                return self._best_of_bank(known, held_out, classes)
        # unit variance on average, so that one range of penalties suits pixels and every network
        size = known.features.std(0).square().mean().sqrt()
        inner, scores = choose_and_refit(known.features / size, known.labels, held_out, classes, PENALTIES)
        detail = {"penalty": inner.penalty, "held_out_top1": scores[inner.penalty]}
        return lambda x: inner(x / size), detail

    def _best_of_bank(
        self, known: Measured, held_out: np.ndarray, classes: int
    ) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        chosen_on = torch.from_numpy(held_out).to(known.features.device)
        if not 0 < int(chosen_on.sum()) < len(chosen_on):
            raise ValueError(f"{len(chosen_on)} training images are too few to hold out some for choosing a probe")
        pairs = [(lr, decay) for lr in self.lrs for decay in self.decays]
        bank = sgd_probes(
            known.features[~chosen_on], known.labels[~chosen_on], classes, lrs=[lr for lr, _ in pairs],
            decays=[decay for _, decay in pairs], batch=self.batch, epochs=self.epochs, seed=self.seed,
        )  # fmt: skip
        found = [accuracy(scores, known.labels[chosen_on]) for scores in bank(known.features[chosen_on])]
        best = max(range(len(pairs)), key=found.__getitem__)
        lr, decay = pairs[best]
        detail = {"lr": lr, "weight_decay": decay, "probes": len(pairs), "held_out_top1": found[best]}
        return self._trained(known, classes, lr, decay), detail

    def _trained(self, known: Measured, classes: int, lr: float, decay: float) -> Callable[[Tensor], Tensor]:
        probe: Probes = sgd_probes(
            known.features, known.labels, classes, lrs=[lr], decays=[decay], batch=self.batch, epochs=self.epochs,
            seed=self.seed,
        )  # fmt: skip
        return lambda x: probe(x)[0]
