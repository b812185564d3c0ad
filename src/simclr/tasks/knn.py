"""Nearest-neighbour accuracy of a frozen encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from simclr.errors import SettingError
from simclr.evaluation.examples import examples_of, require_examples_path, with_features
from simclr.evaluation.features import Features
from simclr.evaluation.figures import figure, write_results
from simclr.evaluation.neighbours import knn_votes
from simclr.evaluation.protocol import (
    Extract,
    by_preprocess,
    extract_features,
    fit_device,
    models_to_evaluate,
    open_labelled,
)
from simclr.runs.machine import Device
from simclr.runs.results import Result, result_path
from simclr.settings import check_settings, setting
from simclr.tasks.labelled import LabelSubset
from simclr.tasks.seen_images import evaluated_images


@dataclass(frozen=True, kw_only=True)
class Knn(LabelSubset):
    """k-NN accuracy of a frozen encoder: a cosine-weighted vote of the nearest training images.

    The same vote on raw pixels and on the untrained network is measured beside it. Each test image is read once.
    `fraction` and `labelled` reduce the training images to those that `simclr finetune` learns from.
    """

    command: ClassVar[str] = "knn"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: str
    """labelled images with a training and a test split"""
    k: int = setting(20, at_least=1)
    """number of neighbours"""
    temperature: float = setting(0.07, above=0)
    """temperature of the vote: a neighbour counts exp(cosine / temperature)"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4"""
    baselines: bool = True
    """also measure raw pixels and the untrained network"""
    out: Path | None = None
    """result file; RUN/knn.json if not given, with the fraction or list of labels in its name. An older file keeps its
    content under a number"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)
        self.check_subset()

    def __call__(self, extract: Extract = extract_features) -> dict[str, Any]:
        path = require_examples_path(result_path(self, self.file_suffix))
        train, test = open_labelled(self.data)
        train, _ = self.subset(train, test=test)
        if self.k > len(train):
            raise SettingError("k", f"at most {len(train)}, the number of labelled images of {train.name}", self.k)
        results: list[Result] = []
        images, examples = evaluated_images(self.run, self.data, test), None
        for models in by_preprocess(models_to_evaluate(self.run, self.baselines, self.layer)):
            banks, queries = (extract(models, split, self.machine) for split in (train, test))
            for model, bank, query in zip(models, banks, queries, strict=True):
                fields = {**model.fields, **images}
                votes = self.votes(bank, query, len(train.classes))
                results.append(self.measure(votes, bank, query, fields))
                if model.role == "model":
                    examples = with_features(examples_of(self.data, test, query, votes), query.features, self.seed)
        return write_results(results, self, path, examples)

    def votes(self, bank: Features, queries: Features, classes: int) -> Float[Tensor, "n c"]:
        """Return the votes of the neighbours of each query for each class."""
        moved = queries.features.to(fit_device(queries.features, self.machine))  # the bank follows block by block
        return knn_votes(bank.features, bank.labels, moved, classes, k=self.k, temperature=self.temperature).cpu()

    def measure(self, votes: Float[Tensor, "n c"], bank: Features, queries: Features, fields: dict[str, Any]) -> Result:
        """Return the accuracy of the votes of one set of features; `fields` are other fields of the result."""
        fields["detail"] = {"labels": len(bank.labels)}
        return figure(votes, queries.labels, protocol=self.protocol_on_subset(f"kNN, k={self.k}"), **fields)
