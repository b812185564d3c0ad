"""Nearest-neighbour accuracy of a frozen encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simclr.evaluation import accuracy, knn_votes
from simclr.machine import Machine
from simclr.measuring import Measured, Result, candidates, labelled, report


@dataclass(frozen=True, kw_only=True)
class Knn:
    """Vote of the k nearest training images by cosine, on features of a frozen encoder.

    Shown beside the same vote on raw pixels and on the untrained network. The test images are read once.
    """

    run: Path
    """run folder of the encoder"""
    data: str
    """labelled images with a training and a test part"""
    k: int = 20
    """number of neighbours; cut to the number of training images"""
    temperature: float = 0.07
    """a neighbour's vote weighs exp(cosine / temperature)"""
    baselines: bool = True
    """also measure raw pixels and the untrained network"""
    out: Path | None = None
    """file for the result; RUN/knn.json if not given"""
    machine: Machine = Machine()
    """device and workers"""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self) -> dict[str, Any]:
        train, test = labelled(self.data)
        results = []
        for candidate in candidates(self.run, self.baselines):
            bank, queries = candidate.features(train, self.machine), candidate.features(test, self.machine)
            results.append(self.measure(candidate.name, bank, queries, len(train.classes)))
        return report(results, self, self.out or self.run / "knn.json")

    def measure(self, name: str, bank: Measured, queries: Measured, classes: int) -> Result:
        """The figure for one set of features."""
        votes = knn_votes(
            bank.features, bank.labels, queries.features, classes, k=self.k, temperature=self.temperature
        )
        return Result.of(name, f"kNN, k={min(self.k, len(bank.labels))}", votes, queries.labels, accuracy)
