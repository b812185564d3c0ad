"""Accuracy of a linear classifier on features of a frozen encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simclr.evaluation import accuracy
from simclr.logistic import PENALTIES, choose_and_refit
from simclr.machine import Machine
from simclr.measuring import Measured, Result, candidates, labelled, report
from simclr.randomness import bits
from simclr.sgd_probe import sgd_probe

HELD_OUT = 0.1  # share of the training images on which the penalty is chosen


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear classifier on features h of a frozen encoder, shown beside raw pixels and the untrained network.

    `lbfgs`: multinomial logistic regression with an L2 penalty out of 45 (paper, App. B.8), chosen on a tenth of
    the training images, refitted on all of them. `sgd`: the official momentum recipe, on features of centre crops.
    The test images are read once, after every choice is made.
    """

    run: Path
    """run folder of the encoder"""
    data: str
    """labelled images with a training and a test part"""
    protocol: Literal["lbfgs", "sgd"] = "lbfgs"
    """how the classifier is fitted"""
    lr: float = 0.1
    """sgd only: learning rate per 256 images (official 0.1)"""
    batch: int = 512
    """sgd only: images in a step"""
    epochs: int = 100
    """sgd only: passes over the training images (official 100 on CIFAR-10, 90 on ImageNet)"""
    weight_decay: float = 0.0
    """sgd only: of the classifier's weights (official 0 on CIFAR-10, 1e-6 on ImageNet)"""
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

    def __call__(self) -> dict[str, Any]:
        train, test = labelled(self.data)
        results = []
        for candidate in candidates(self.run, self.baselines):
            known = candidate.features(train, self.machine)
            classifier, detail = self.classifier(known, len(train.classes))
            unseen = candidate.features(test, self.machine)
            scores = classifier(unseen.features)
            results.append(Result.of(candidate.name, self.name, scores, unseen.labels, accuracy, **detail))
        return report(results, self, self.out or self.run / "linear.json")

    @property
    def name(self) -> str:
        """What the protocol is called in tables."""
        return "linear, L-BFGS" if self.protocol == "lbfgs" else "linear, SGD"

    def classifier(self, known: Measured, classes: int):
        """The fitted classifier and what to record of the fit."""
        # unit variance on average, so that one range of penalties suits pixels and every network
        size = known.features.std(0).square().mean().sqrt()
        features = known.features / size
        if self.protocol == "sgd":
            inner = sgd_probe(
                known.features, known.labels, classes, lr=self.lr, batch=self.batch, epochs=self.epochs,
                weight_decay=self.weight_decay, seed=self.seed,
            )  # fmt: skip
            return inner, {}
        held_out = held_out_rows(known.indices.numpy(), self.seed)
        inner, scores = choose_and_refit(features, known.labels, held_out, classes, PENALTIES)
        detail = {"penalty": inner.penalty, "held_out_top1": scores[inner.penalty]}
        return lambda x: inner(x / size), detail


def held_out_rows(indices: np.ndarray, seed: int) -> np.ndarray:
    """A tenth of the images, told by a hash of their index, so that it does not depend on the others."""
    threshold = np.uint64(int(HELD_OUT * 2**64))
    return bits(seed, indices) < threshold


