"""What an ablation is, and the ways in which its members differ from a base task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simclr.tasks.distill import Distill
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain


@dataclass(frozen=True)
class Then:
    """A task that goes on from the run before it, with these settings."""

    task: type[FineTune] | type[Distill]
    settings: Mapping[str, Any]


Member = tuple[Pretrain | Then, ...]
"""A pretraining, and what follows it; the last of them is measured."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One study: what it varies, and what the paper found."""

    varies: str
    source: str
    """paper and table"""
    members: Callable[[Pretrain], dict[str, Member]]
    """of a base task; a label is the name of a folder"""
    published: Mapping[str, float] = field(default_factory=dict)
    """the paper's linear top-1 of members, %"""
    conditions: str = ""
    """how the published figures were come by"""
    layers: tuple[str, ...] = ("h",)
    """what is measured of a pretrained network"""


def alone(tasks: Mapping[str, Pretrain]) -> dict[str, Member]:
    """Members that are a pretraining and nothing else."""
    return {label: (task,) for label, task in tasks.items()}


def with_views(base: Pretrain, **settings: Any) -> Pretrain:
    """A task with these settings of its views."""
    return replace(base, views=replace(base.views, **settings))


def resnet_of(base: Pretrain) -> tuple[int, float | int]:
    """Depth and width of the encoder; ValueError for other families, whose depth and width are not ours to vary."""
    depth = base.encoder.removeprefix("simclr_resnet")
    if not depth.isdecimal():
        raise ValueError(f"encoder is {base.encoder}; this study varies depth and width of simclr_resnet networks")
    return int(depth), base.encoder_options.get("width", 1)


def with_resnet(base: Pretrain, depth: int, width: float | int, **options: Any) -> Pretrain:
    """A task with a ResNet of that depth and width."""
    return replace(
        base, encoder=f"simclr_resnet{depth}", encoder_options={**base.encoder_options, "width": width, **options}
    )
