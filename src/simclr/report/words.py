"""Figures in words: what each is called, its unit, and what it means."""

import math
from typing import Any, NamedTuple


class Term(NamedTuple):
    """A figure by its name in logs and results."""

    label: str
    unit: str
    """%: the value is a share"""
    meaning: str


TERMS = {
    "top1": Term("top-1", "%", "share of images whose highest score is the right class"),
    "mean_per_class": Term("mean per class", "%", "top-1 within each class, averaged over classes"),
    "map11": Term("11-point mAP", "%", "mean over classes of the 11-point average precision"),
    "agreement_top1": Term("agreement", "%", "share of images on which student and teacher choose the same class"),
    "agreement": Term("agreement with the teacher", "%", "in the batch: student and teacher choose the same class"),
    "train_top1": Term("training top-1", "%", "of the batch, with its crops and flips"),
    "knn_top1": Term("kNN top-1", "%", "20 neighbours, on some of the training images; no test image is touched"),
    "contrastive_top1": Term("contrastive top-1", "%", "share of anchors nearest to their own other view"),
    "loss": Term("loss", "nats", "mean over the anchors of a batch"),
    "loss_over_chance": Term("loss ÷ chance", "", "of the first process's part of the batch"),
    "lr": Term("learning rate", "", "as applied"),
    "positive_cosine": Term("positive cosine", "", "of the two views of an image"),
    "negative_cosine": Term("negative cosine", "", "of views of different images"),
    "alignment": Term("alignment", "", "mean squared distance of the two views of an image; 0 is perfect"),
    "uniformity": Term("uniformity", "", "about -4 is uniform on the sphere, 0 a single point"),
    "entropy": Term("entropy", "nats", "of the softmax over an anchor's candidates"),
    "embedding_std": Term("standard deviation", "", "of z by dimension, times √d: 1 is isotropic, 0 a single point"),
    "rankme": Term("effective rank of h", "dimensions", "of at most 256 images of the batch"),
    "rankme_h": Term("effective rank of h", "dimensions", "at most the number of images, and of features"),
    "rankme_z": Term("effective rank of z", "dimensions", "at most the number of images, and of features"),
    "idle_dimensions": Term("idle dimensions", "%", "share of dimensions with next to no deviation"),
    "ece": Term("calibration error", "%", "expected difference between confidence and accuracy"),
    "images_per_s": Term("speed", "images/s", "over all processes"),
    "data_wait_percent": Term("waiting for images", "% of the time", "in which the network stood still"),
    "memory_mb": Term("memory", "MB", "most held so far: of the GPU, else of the process"),
}


def term(name: str) -> Term:
    """The term of a figure; of one that is not known, its name without a unit."""
    if name in TERMS:
        return TERMS[name]
    if name.startswith("health_"):
        known = term(name.removeprefix("health_"))
        return Term(f"{known.label}, check", known.unit, known.meaning)
    return Term(name.replace("_", " "), "%" if name.endswith("top1") else "", "")


def number(name: str, value: float | int | None) -> str:
    """A figure with its unit."""
    if value is None:
        return "–"
    unit = term(name).unit
    if unit == "%":
        return f"{100 * value:.1f} %"
    if not math.isfinite(value):
        return f"{value}"
    amount = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{amount} {unit}".strip()


def interval(name: str, span: Any) -> str:
    """A 95 % interval as its ends, in the unit of its figure."""
    if not span:
        return ""
    low, high = (number(name, end).removesuffix(" %") for end in span)
    return f"[{low}, {high}]"


def points(name: str, difference: float | int, span: Any = None) -> str:
    """A difference of two figures, which for shares is in percentage points."""
    share = term(name).unit == "%"
    form = (lambda x: f"{100 * x:+.1f}") if share else (lambda x: f"{x:+.4g}")
    ends = f" [{form(span[0])}, {form(span[1])}]" if span else ""
    return f"{form(difference)}{' points' if share else ''}{ends}"


def duration(seconds: float | int) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def several(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def setting(value: Any) -> str:
    """A setting as a recipe file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
