"""Nearest-neighbour accuracy of a frozen encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simclr.evaluation.figures import Result, report
from simclr.evaluation.neighbours import knn_votes
from simclr.evaluation.protocol import Candidate, Measured, candidates, labelled, workplace
from simclr.runs.machine import Machine
from simclr.runs.results import destination


@dataclass(frozen=True, kw_only=True)
class Knn:
    """Vote of the k nearest training images by cosine, on features of a frozen encoder.

    Shown beside the same vote on raw pixels and on the untrained network. The test images are read once.
    """

    command: ClassVar[str] = "knn"

    run: Path
    """run folder of the encoder"""
    data: str
    """labelled images with a training and a test part"""
    k: int = 20
    """number of neighbours"""
    temperature: float = 0.07
    """a neighbour's vote weighs exp(cosine / temperature)"""
    layer: str = "h"
    """what is compared: h, z, head.1 and on, block_group1 to 4"""
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
        path = destination(self)
        train, test = labelled(self.data)
        if self.k > len(train):
            raise ValueError(
                f"k={self.k}: {train.name} has {len(train)} training images only; give --k {len(train)} or less"
            )
        results = []
        for candidate in candidates(self.run, self.baselines, self.layer):
            bank, queries = candidate.features(train, self.machine), candidate.features(test, self.machine)
            results.append(self.measure(candidate, bank, queries, len(train.classes)))
        return report(results, self, path)

    def measure(self, candidate: Candidate, bank: Measured, queries: Measured, classes: int) -> Result:
        """The figure for one set of features."""
        asked = queries.features.to(workplace(queries.features, self.machine))  # the bank follows block by block
        votes = knn_votes(bank.features, bank.labels, asked, classes, k=self.k, temperature=self.temperature).cpu()
        return Result.of(candidate.name, f"kNN, k={self.k}", votes, queries.labels, **candidate.facts)
