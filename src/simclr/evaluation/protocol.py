"""Evaluation protocol shared by all measuring commands: models, baselines and labelled data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.data.multilabel import is_multilabel, present_classes
from simclr.data.specs import why_unlabelled
from simclr.data.splits import drop_unseen_classes
from simclr.evaluation.features import Features as Measured
from simclr.evaluation.features import extract
from simclr.models.layers import read_layer
from simclr.models.pretrained import load, raw_pixels, untrained
from simclr.runs.machine import Machine
from simclr.views.preprocess import Preprocess

COPIES = 6  # of the features, for which there must be room on the device that fits a classifier on them


@dataclass(frozen=True)
class Candidate:
    """Something that gives features: the pretrained network, the same untrained, or the pixels."""

    name: str
    network: nn.Module
    preprocess: Preprocess
    layer: str

    def features(self, source: Source, machine: Machine) -> Measured:
        """Features of every readable image of a source."""
        device = torch.device(machine.kind)
        return extract(
            self.network.to(device), source, self.preprocess, device=device, workers=machine.worker_processes
        )

    @property
    def facts(self) -> dict[str, str]:
        """What a result records of where its features come from."""
        return {"layer": self.layer, "transform": describe(self.preprocess)}


def workplace(features: Float[Tensor, "n d"], machine: Machine) -> str:
    """Where features are compared and classifiers fitted: on the GPU, if it is CUDA and has room, else on the CPU.

    Fits need float64, which MPS lacks.
    """
    if machine.kind == "cuda" and COPIES * features.nbytes < torch.cuda.mem_get_info()[0]:
        return "cuda"
    return "cpu"


class _Pixels(nn.Module):
    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return raw_pixels(x)


def describe(preprocess: Preprocess) -> str:
    """A preprocessing in words."""
    small = preprocess.size <= 32
    return f"{'whole image' if small else f'central {preprocess.crop:g}'}, bicubic, {preprocess.size} px"


def candidates(run: Path, baselines: bool, layer: str = "h") -> list[Candidate]:
    """The pretrained encoder of a run, last; before it, on request, what it has to beat."""
    encoder = load(run)
    network = read_layer(encoder.network, encoder.head, layer)
    trained = Candidate("pretrained encoder", network, encoder.preprocess, layer)
    if not baselines:
        return [trained]
    # pixels at 32 px at most: more of them cost much and tell a linear classifier nothing
    small = Preprocess(min(encoder.preprocess.size, 32), crop=encoder.preprocess.crop)
    fresh = read_layer(untrained(encoder.card), encoder.card.build_head(), layer).eval()
    return [
        Candidate("raw pixels", _Pixels(), small, "pixels"),
        Candidate("untrained encoder", fresh, encoder.preprocess, layer),
        trained,
    ]


def labelled(data: Any, *, several: bool = False) -> tuple[Source, Source]:
    """Training and test part of a labelled source; ValueError that says what to do where that is not to be had.

    `several` allows images that show several classes, see `simclr.data.several`.
    """
    train, test = open_source(data, "train"), open_source(data, "test")
    for source in (train, test):
        if source.labels is None or (source.labels < 0).all():
            raise ValueError(f"{source.name} has no labels, which measuring needs: {why_unlabelled(data)}")
    train, test = _with_labels(train), _with_labels(test)
    if is_multilabel(train) and not several:
        raise ValueError(f"{train.name}: its images show several classes (labels such as a|b); use simclr transfer")
    if len(present_classes(train)) < 2:
        raise ValueError(f"{train.name} has one class only in its training part; measuring needs at least two")
    return train, drop_unseen_classes(train, test)


def _with_labels(source: Source) -> Source:
    known = (source.labels >= 0).nonzero()[0]
    return source if len(known) == len(source) else source.select(known, source.split)
