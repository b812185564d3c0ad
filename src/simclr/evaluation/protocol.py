"""Evaluation protocol shared by all measuring commands: the measured model, its baselines, and labelled data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.data.multilabel import is_multilabel, present_classes
from simclr.data.specs import why_unlabelled
from simclr.data.splits import drop_unseen_classes
from simclr.errors import DataError
from simclr.evaluation.features import Features, extract_all, extract_together
from simclr.models.layers import read_layer
from simclr.models.pretrained import load, raw_pixels, untrained
from simclr.runs.machine import Device
from simclr.views.preprocess import Preprocess

COPIES = 6  # of the features that must fit into the memory of the device on which a classifier is fitted
PIXELS = 32  # largest side of the raw pixels: larger ones cost much and add nothing for a linear classifier


@dataclass(frozen=True)
class FeatureModel:
    """A source of features: the pretrained network, the same network untrained, or the pixels."""

    name: str
    role: Literal["model", "baseline"]
    network: nn.Module
    preprocess: Preprocess
    layer: str

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a `Result` that describe this model."""
        return {"name": self.name, "role": self.role, "layer": self.layer, "transform": describe(self.preprocess)}


def by_preprocess(models: list[FeatureModel]) -> list[list[FeatureModel]]:
    """Return consecutive models with the same preprocessing as groups: each image is decoded once for a group."""
    return [list(group) for _, group in groupby(models, key=lambda model: model.preprocess)]


def extract_features(models: Sequence[FeatureModel], source: Source, machine: Device) -> list[Features]:
    """Return the features of every readable image of a source for models with the same preprocessing. Processes that
    torchrun or SLURM started for a command that evaluates divide the images."""
    extract = extract_together if machine.join() else extract_all
    networks = [model.network.to(machine.kind) for model in models]
    preprocess, workers = models[0].preprocess, machine.worker_processes
    return extract(networks, source, preprocess, device=machine.kind, workers=workers)


Extract = Callable[[Sequence[FeatureModel], Source, Device], list[Features]]
"""Function such as `extract_features`"""


class SharedFeatures:
    """Features of several layers of one encoder, extracted together when those of the first are asked for, so that each
    image of a split is read once."""

    def __init__(self, models: Sequence[FeatureModel]) -> None:
        self.models = models
        self.kept: dict[str, dict[str, Features]] = {}

    def __call__(self, models: Sequence[FeatureModel], source: Source, machine: Device) -> list[Features]:
        """Return the features of those of the models that have the layers of `models`."""
        if source.split not in self.kept:
            features = extract_features(self.models, source, machine)
            self.kept[source.split] = {m.layer: f for m, f in zip(self.models, features, strict=True)}
        return [self.kept[source.split][model.layer] for model in models]


class _Pixels(nn.Module):
    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return raw_pixels(x)


def fit_device(features: Float[Tensor, "n d"], machine: Device) -> str:
    """Return the device on which features are compared and classifiers fitted: a CUDA GPU if they fit into its memory,
    else the CPU. Fits need float64, which MPS lacks."""
    if machine.kind == "cuda" and COPIES * features.nbytes < torch.cuda.mem_get_info()[0]:
        return "cuda"
    return "cpu"


def describe(preprocess: Preprocess) -> str:
    """Return a preprocessing as text."""
    small = preprocess.size <= 32
    return f"{'whole image' if small else f'central {preprocess.crop:g}'}, bicubic, {preprocess.size} px"


def models_to_evaluate(run: Path, baselines: bool, layer: str = "h") -> list[FeatureModel]:
    """Return the pretrained encoder of a run, preceded by its baselines if they are asked for."""
    encoder = load(run)
    network = read_layer(encoder.network, encoder.head, layer)
    trained = FeatureModel("pretrained encoder", "model", network, encoder.preprocess, layer)
    if not baselines:
        return [trained]
    small = replace(encoder.preprocess, size=min(encoder.preprocess.size, PIXELS))
    fresh = read_layer(untrained(encoder.card), encoder.card.build_head(), layer).eval()
    return [
        FeatureModel("raw pixels", "baseline", _Pixels(), small, "pixels"),
        FeatureModel("untrained encoder", "baseline", fresh, encoder.preprocess, layer),
        trained,
    ]


def open_labelled(data: Any, *, multilabel: bool = False) -> tuple[Source, Source]:
    """Return the training and test splits of a labelled source; DataError says what to do if there are none.

    `multilabel` allows images with several classes, see `simclr.data.multilabel`.
    """
    train, test = open_source(data, "train"), open_source(data, "test")
    for source in (train, test):
        if source.labels is None or (source.labels < 0).all():
            raise DataError(source.name, "has no labels, which this command needs", why_unlabelled(data))
    train, test = with_labels(train), with_labels(test)
    if is_multilabel(train) and not multilabel:
        remedy = "Use simclr transfer"
        raise DataError(train.name, "has images with several classes (labels such as a|b)", remedy)
    if len(present_classes(train)) < 2:
        raise DataError(train.name, "has only one class in its training split; at least two are needed")
    return train, drop_unseen_classes(train, test)


def with_labels(source: Source) -> Source:
    """Return the labelled images of a source that has labels."""
    rows = (source.labels >= 0).nonzero()[0]
    return source if len(rows) == len(source) else source.select(rows, source.split)
