"""Ablations of the augmentation of the first paper (Chen et al. 2020), with the figures of its tables."""

from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies.ablation import Ablation, Claim, alone, supervised, with_views
from simclr.tasks.training import TaskChain
from simclr.views import Views

RESNET50 = "ImageNet, ResNet-50, linear top-1 after 100 epochs"
NO_VIEWS: dict[str, Any] = {
    "crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0,
}  # fmt: skip


def parts_of(base: Pretrain) -> dict[str, dict[str, Any]]:
    """Return the settings of crop (with flip), colour (jitter and grey) and blur."""
    v = base.views
    return {
        "crop": {"crop_area": v.crop_area, "crop_ratio": v.crop_ratio, "flip": v.flip},
        "colour": {"jitter": v.jitter or 0.8, "grey": v.grey or 0.2},
        "blur": {"blur": v.blur or 0.5},
    }


def augmentation(base: Pretrain) -> dict[str, TaskChain]:
    """Return every composition of crop (with flip), colour (jitter and grey) and blur."""
    parts = parts_of(base)
    chosen = [names for count in (1, 2, 3) for names in combinations(parts, count)]
    return alone({"+".join(names): with_views(base, **NO_VIEWS | _joined(parts, names)) for names in chosen})


def one_branch(base: Pretrain) -> dict[str, TaskChain]:
    """Return the seven operations of the paper and their pairs, applied to one view; the other is the whole image."""
    parts = parts_of(base)
    always = {name: {name: 1.0} for name in ("cutout", "sobel", "noise", "blur", "rotate")}
    operations = {"crop": parts["crop"], "colour": parts["colour"], **always}
    plain = replace(with_views(base, **NO_VIEWS), first_size=None)
    chosen = [names for count in (1, 2) for names in combinations(operations, count)]
    return alone({"+".join(names): replace(plain, policies=({}, _joined(operations, names))) for names in chosen})


def _joined(parts: dict[str, dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    return {setting: value for name in names for setting, value in parts[name].items()}


def colour(base: Pretrain) -> dict[str, TaskChain]:
    """Return strengths of the colour distortion without blur, the largest with it, and AutoAugment, each beside the
    supervised training with the same views."""
    tasks = {f"strength-{s:g}": with_views(base, strength=s, blur=0.0) for s in (0.125, 0.25, 0.5, 1.0)}
    tasks["strength-1+blur"] = with_views(base, strength=1.0, blur=base.views.blur or 0.5)
    tasks["autoaugment"] = with_views(base, autoaugment=1.0, jitter=0.0, grey=0.0, blur=0.0)
    return {**alone(tasks), **{f"supervised-{label}": _with_its_views(task) for label, task in tasks.items()}}


def _with_its_views(task: Pretrain) -> TaskChain:
    plain = FineTune(run=Path(), data="", crop_area=task.views.crop_area).policy(task.views.size)
    own = {f.name: getattr(task.views, f.name) for f in fields(Views)}
    augment = {name: value for name, value in own.items() if value != getattr(plain, name)}
    return supervised(task, augment=augment, crop_area=task.views.crop_area)


def leave_out(base: Pretrain) -> dict[str, TaskChain]:
    """Return the base's augmentation policy, and the policy without each of its operations."""
    without = {
        "flip": {"flip": 0.0}, "blur": {"blur": 0.0}, "jitter": {"jitter": 0.0}, "grey": {"grey": 0.0},
        "crop": {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0)},
    }  # fmt: skip
    return alone({"all": base, **{f"no-{part}": with_views(base, **off) for part, off in without.items()}})


V1_VIEWS = {
    "augmentation": Ablation(
        varies="compositions of crop, colour and blur", source="v1, Fig. 5", members=augmentation,
        conditions="the paper applies them to one of the views, and has more of them; it gives a plot",
        claims=(
            Claim("crops with colour distortion are better than crops alone", ("crop+colour", "crop")),
        ),
    ),
    "one-branch": Ablation(
        varies="operations and pairs of them, applied to one of the two views", source="v1, Fig. 5", members=one_branch,
        grid=lambda label: (label.partition("+")[0], label.rpartition("+")[2]),
        conditions="the paper gives a plot",
        claims=(
            Claim("no single operation suffices: crops with colour distortion are better than crops alone",
                  ("crop+colour", "crop")),
            Claim("crops with colour distortion are the best pair: better than crops with the Sobel filter",
                  ("crop+colour", "crop+sobel")),
        ),
    ),
    "colour": Ablation(
        varies="strength of the colour distortion, and AutoAugment, self-supervised and supervised",
        source="v1, Table 1", members=colour,
        published={"strength-0.125": 59.6, "strength-0.25": 61.0, "strength-0.5": 62.6, "strength-1": 63.2,
                   "strength-1+blur": 64.5, "autoaugment": 61.1,
                   "supervised-strength-0.125": 77.0, "supervised-strength-0.25": 76.7, "supervised-strength-0.5": 76.5,
                   "supervised-strength-1": 75.7, "supervised-strength-1+blur": 75.4, "supervised-autoaugment": 77.1},
        conditions=RESNET50,
        claims=(
            Claim("stronger colour distortion is better", ("strength-1", "strength-0.125")),
            Claim("blur helps", ("strength-1+blur", "strength-1")),
            Claim("the simple distortion is better than AutoAugment", ("strength-1+blur", "autoaugment")),
            Claim("supervised training does not gain from a strong distortion",
                  ("supervised-strength-0.125", "supervised-strength-1"), measure="classifier"),
            Claim("supervised training gains from AutoAugment",
                  ("supervised-autoaugment", "supervised-strength-1+blur"), measure="classifier"),
        ),
    ),
    "leave-out": Ablation(
        varies="operations of the augmentation, left out one at a time", source="v1, App. A", members=leave_out,
        published={"all": 64.5, "no-flip": 63.4, "no-blur": 63.2}, conditions=RESNET50,
        claims=(
            Claim("flips help", ("all", "no-flip")),
            Claim("blur helps", ("all", "no-blur")),
        ),
    ),
}  # fmt: skip
