"""Ablations, and the ways in which their members differ from a base task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from simclr.errors import SettingError
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.training import NextTask, TaskChain
from simclr.tasks.v2 import SUPERVISED


class Claim(NamedTuple):
    """A claim of a paper: one member of a study is more accurate than another."""

    text: str
    members: tuple[str, str]
    """labels of the better and of the worse member, as they are with the paper's settings"""
    measure: str = "linear h"
    """evaluation and layer that are compared, or `classifier` for networks with one of their own"""
    worse_measure: str = ""
    """those of the worse member, if they are others"""
    than: tuple[str, str] | None = None
    """members whose difference, by the same measures, is smaller than that of `members`, if that is the claim"""
    stated: str = ""
    """effect that the paper states, if it gives no figures of all members"""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Ablation of one or several settings, with the figures that the papers give for it."""

    varies: str
    source: str
    """paper and table"""
    members: Callable[[Pretrain], dict[str, TaskChain]]
    """map from a base task to the members by label; a label is also the name of a folder"""
    published: Mapping[str, float] = field(default_factory=dict)
    """top-1 accuracy of members in the paper, %"""
    conditions: str = ""
    """conditions of the published figures"""
    evaluation: Literal["accuracy", "information", "transfer"] = "accuracy"
    """what is measured of a network: its accuracy, by its own classifier if it has one; what layers keep of an image
    (`simclr information`); accuracy on other data sets (`simclr transfer`)"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """settings of the last two"""
    layers: tuple[str, ...] = ("h",)
    """layers of a pretrained network that are evaluated"""
    checks: tuple[str, ...] = ()
    """figures of the last health check of a pretraining that are shown beside the accuracy"""
    grid: Callable[[str], tuple[str, str]] | None = None
    """row and column of a member, by its label, in a heat map"""
    tuning: Mapping[str, Callable[[Pretrain], dict[str, list]]] = field(default_factory=dict)
    """by member, map from its task to the values of settings that `tune` tries; the same number for each member"""
    claims: tuple[Claim, ...] = ()
    """what the paper concludes, as contrasts between members"""


def alone(tasks: Mapping[str, Pretrain]) -> dict[str, TaskChain]:
    """Return members that consist of a pretraining alone."""
    return {label: (task,) for label, task in tasks.items()}


def supervised(base: Pretrain, **settings: Any) -> TaskChain:
    """Return a pretraining and the supervised training of its network, from random weights on all labels, for as many
    epochs."""
    return base, NextTask(
        FineTune, {**SUPERVISED, "from_scratch": True, "epochs": base.epochs, "fraction": 1.0} | settings
    )


def with_views(base: Pretrain, **settings: Any) -> Pretrain:
    """Return a task with these settings of its augmentation policy."""
    return replace(base, views=replace(base.views, **settings))


def resnet_of(base: Pretrain) -> tuple[int, float | int]:
    """Return depth and width of a simclr_resnet encoder."""
    depth = base.encoder.removeprefix("simclr_resnet")
    if not depth.isdecimal():
        raise SettingError("encoder", "a simclr_resnet, whose depth and width this study varies", base.encoder)
    return int(depth), base.encoder_options.get("width", 1)


def with_resnet(base: Pretrain, depth: int, width: float | int, **options: Any) -> Pretrain:
    """Return a task with a ResNet of that depth and width."""
    return replace(
        base, encoder=f"simclr_resnet{depth}", encoder_options={**base.encoder_options, "width": width, **options}
    )
