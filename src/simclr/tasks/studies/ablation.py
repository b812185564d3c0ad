"""Ablations, and the ways in which their members differ from a base task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from simclr.errors import SettingError
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.training import TaskChain


class Claim(NamedTuple):
    """A claim of a paper: one member of a study is more accurate than another."""

    text: str
    members: tuple[str, str]
    """labels of the better and of the worse member, as they are with the paper's settings"""
    measure: str = "linear h"
    """evaluation and layer that are compared, or `classifier` for networks with one of their own"""
    worse_measure: str = ""
    """those of the worse member, if they are others"""
    stated: str = ""
    """effect that the paper states, if it gives no figures of both members"""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Ablation of one or several settings, with the figures that the papers give for it."""

    varies: str
    source: str
    """paper and table"""
    members: Callable[[Pretrain], dict[str, TaskChain]]
    """map from a base task to the members by label; a label is also the name of a folder"""
    published: Mapping[str, float] = field(default_factory=dict)
    """linear top-1 accuracy of members in the paper, %"""
    conditions: str = ""
    """conditions of the published figures"""
    layers: tuple[str, ...] = ("h",)
    """layers of a pretrained network that are evaluated"""
    claims: tuple[Claim, ...] = ()
    """what the paper concludes, as contrasts between members"""


def alone(tasks: Mapping[str, Pretrain]) -> dict[str, TaskChain]:
    """Return members that consist of a pretraining alone."""
    return {label: (task,) for label, task in tasks.items()}


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
