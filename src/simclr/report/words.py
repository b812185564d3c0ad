"""Labels, units and meanings of figures, and the formats of numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from simclr.runs.recipe import flatten
from simclr.runs.results import unit_of


class Term(NamedTuple):
    """A figure by its name in logs and results."""

    label: str
    unit: str
    """%: the value is a fraction"""
    meaning: str


TERMS = {
    "top1": Term("top-1", "%", "fraction of images whose highest score is at the right class"),
    "mean_per_class": Term("mean per class", "%", "top-1 accuracy within each class, averaged over classes"),
    "map11": Term("11-point mAP", "%", "11-point average precision, averaged over classes"),
    "agreement_top1": Term("agreement", "%", "fraction of images on which student and teacher predict the same class"),
    "agreement": Term("agreement with the teacher", "%", "in the batch: student and teacher predict the same class"),
    "train_top1": Term("training top-1", "%", "accuracy in the batch, with its crops and flips"),
    "knn_top1": Term("k-NN top-1", "%", "20 neighbours, on a sample of the training images; no test image is read"),
    "contrastive_top1": Term("contrastive top-1", "%", "fraction of anchors whose nearest candidate is their positive"),
    "loss": Term("loss", "nats", "mean over the anchors of a batch"),
    "loss_over_chance": Term("loss ÷ chance", "", "on the first process's part of the batch"),
    "temperature": Term("temperature", "", "of the loss, as applied"),
    "lr": Term("learning rate", "", "as applied"),
    "positive_cosine": Term("positive cosine", "", "cosine of the two views of an image"),
    "negative_cosine": Term("negative cosine", "", "cosine of views of different images"),
    "alignment": Term("alignment", "", "mean squared distance of the two views of an image; 0 is perfect"),
    "uniformity": Term("uniformity", "", "about -4 for embeddings spread evenly on the sphere, 0 for a single point"),
    "entropy": Term("entropy", "nats", "entropy of the softmax over an anchor's candidates"),
    "embedding_std": Term("standard deviation", "", "of z by dimension, times √d: 1 is isotropic, 0 a single point"),
    "rankme": Term("effective rank of h", "dimensions", "on at most 256 images of the batch"),
    "rankme_h": Term("effective rank of h", "dimensions", "at most the number of images and of features"),
    "rankme_z": Term("effective rank of z", "dimensions", "at most the number of images and of features"),
    "idle_dimensions": Term("idle dimensions", "%", "fraction of dimensions with almost no deviation"),
    "ece": Term("calibration error", "%", "expected difference between confidence and accuracy"),
    "images_per_s": Term("throughput", "images/s", "over all processes"),
    "data_wait_percent": Term("data-loading wait", "% of the time", "in which the network waited for images"),
    "seconds": Term("time", "s", "since the start"),
    "memory_mb": Term("memory", "MB", "maximum so far: of the GPU, else of the process"),
}


def term(name: str) -> Term:
    """Return the term of a figure; for an unknown figure, its name and unit."""
    if name in TERMS:
        return TERMS[name]
    if name.startswith("health_"):
        figure = term(name.removeprefix("health_"))
        return Term(f"{figure.label}, check", figure.unit, figure.meaning)
    return Term(name.replace("_", " "), unit_label(unit_of(name)), "")


def is_fraction(name: str) -> bool:
    """Return whether a figure is shown in percent; figures that are not in `TERMS` are accuracies."""
    return name not in TERMS or TERMS[name].unit == "%"


def unit_label(unit: str) -> str:
    """Return the label of the unit of a result: fractions are shown in percent."""
    return "%" if unit == "fraction" else unit


def number(value: float | int | None, unit: str) -> str:
    """Return a figure with the label of its unit."""
    if value is None:
        return "–"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if not math.isfinite(value):
        return f"{value}"
    amount = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{amount} {unit}".strip()


def interval(span: Any, unit: str) -> str:
    """Return a confidence interval as its ends, in the unit of its figure."""
    if not span:
        return ""
    low, high = (number(end, unit).removesuffix(" %") for end in span)
    return f"[{low}, {high}]"


def points(difference: float | int, unit: str, span: Any = None) -> str:
    """Return the difference of two figures, for fractions in percentage points."""
    percent = unit == "%"
    form = (lambda x: f"{100 * x:+.1f}") if percent else (lambda x: f"{x:+.4g}")
    ends = f" [{form(span[0])}, {form(span[1])}]" if span else ""
    return f"{form(difference)}{' points' if percent else ''}{ends}"


def duration(seconds: float | int) -> str:
    """Return seconds in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s in the plural."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(texts: Sequence[str]) -> str:
    """Return texts as an enumeration."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


DETAILS = {  # of a figure in a result file
    "held_out_top1": "top-1 on held-out training images", "penalty": "L2 penalty", "width": "features",
    "images": "labelled images", "labels": "labelled images", "linear_top1": "top-1 of the linear probe",
    "linear_mean_per_class": "mean per class of the linear probe", "linear_map11": "11-point mAP of the linear probe",
    "p": "p-value",
}  # fmt: skip


def detail_text(detail: dict[str, Any]) -> str:
    """Return further values of a figure as text."""
    texts = []
    for name, value in flatten(detail):
        label, last = DETAILS.get(name, term(name).label), name.rsplit(".", 1)[-1]
        if isinstance(value, float):
            value = number(value, "%" if unit_of(last) == "fraction" or last.startswith("linear_") else "")
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        texts.append(f"{label} {value if isinstance(value, str) else setting_text(value)}")
    return ", ".join(texts)


def setting_text(value: Any) -> str:
    """Return the value of a setting as a recipe file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(setting_text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
