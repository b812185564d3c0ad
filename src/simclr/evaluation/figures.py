"""Result records with metrics and confidence intervals, and the printed table."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from simclr.evaluation.intervals import bootstrap_interval, class_interval, resampled_interval
from simclr.evaluation.metrics import METRICS
from simclr.runs.environment import code_hash, environment
from simclr.runs.files import number_existing, write_atomically
from simclr.runs.recipe import plain
from simclr.runs.results import provenance

SPLIT = "fitted on train, chosen on held-out train, read once on test"
FROZEN = "the whole encoder, batch statistics included"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure and how it was come by."""

    name: str
    protocol: str
    metric: str
    """top1, mean_per_class, map11, or the name of another figure"""
    value: float
    interval: tuple[float, float] | None
    """95 %, see `interval_of`; None where there is none"""
    n: int
    """test images"""
    interval_of: str = "bootstrap over the test images"
    frozen: str = FROZEN
    layer: str = "h"
    transform: str = ""
    split: str = SPLIT
    detail: dict[str, Any] = field(default_factory=dict)
    hits: str | None = None
    """which test images were told right, a bit each in their order, in base64: for paired comparisons"""
    answers: str | None = None
    """hash of the test images' classes in their order: hits belong together where it is the same"""

    @classmethod
    def of(
        cls,
        name: str,
        protocol: str,
        scores: Float[Tensor, "n c"],
        truth: Shaped[Tensor, "n ..."],
        metric: str = "top1",
        *,
        layer: str = "h",
        transform: str = "",
        frozen: str = FROZEN,
        split: str = SPLIT,
        **detail: Any,
    ) -> "Result":
        """The figure that `metric` makes of scores and classes (n,), or of scores and present classes (n, c)."""
        kept = {}
        if metric == "top1":
            bits = np.packbits(hits(scores, truth) > 0)
            named = hashlib.sha256(truth.cpu().numpy().tobytes()).hexdigest()[:12]
            kept = {"hits": base64.b64encode(bits).decode(), "answers": named}
        return cls(
            name=name, protocol=protocol, metric=metric, value=METRICS[metric](scores, truth),
            interval=interval(metric, scores, truth), n=len(truth), layer=layer, transform=transform, frozen=frozen,
            split=split, detail=detail, **kept,
        )  # fmt: skip


def hits(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> np.ndarray:
    """1.0 where the highest score is at the label, else 0.0."""
    return (scores.argmax(1) == labels).cpu().double().numpy()


def interval(metric: str, scores: Float[Tensor, "n c"], truth: Shaped[Tensor, "n ..."]) -> tuple[float, float]:
    """95 % of what another draw of as many test images might have shown."""
    match metric:
        case "top1":
            return bootstrap_interval(hits(scores, truth))
        case "mean_per_class":
            return class_interval(hits(scores, truth), truth.cpu().numpy())
    return resampled_interval(METRICS[metric], scores.cpu(), truth.cpu())


def summary(results: Sequence[Result], task: Any, run: Path | None) -> dict[str, Any]:
    """What a result file holds: every figure with the code and the recipe it comes from, settings and environment."""
    origin = {"code": code_hash(), **(provenance(run) if run else {})}
    return {
        "task": type(task).__name__.lower(),
        "settings": plain(task),
        "results": [{**asdict(result), **origin} for result in results],
        "environment": environment(),
    }


def report(results: Sequence[Result], task: Any, path: Path, run: Path | None = None) -> dict[str, Any]:
    """Print the table, write it to `path` as JSON, and return what was written. An older file keeps its name with
    a number added: no measurement is lost. `run` is the folder of the encoder, if it is not `task.run`."""
    run = run or getattr(task, "run", None)
    data = ", ".join(task.data) if isinstance(task.data, list) else task.data
    print(f"{type(task).__name__.lower()} of {run} on {data}\n{table(results)}")
    content = summary(results, task, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    number_existing(path)
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")
    return content


def table(results: Sequence[Result]) -> str:
    """Results as aligned text."""
    rows = [(r.name, r.protocol, r.layer, *_shown(r), f"n={r.n:,}{_chance(r)}") for r in results]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _shown(r: Result) -> tuple[str, str, str]:
    share = r.metric in METRICS or r.metric.endswith("top1")
    form = (lambda x: f"{100 * x:.1f}") if share else (lambda x: f"{x:.4g}")
    span = f"[{form(r.interval[0])}, {form(r.interval[1])}]" if r.interval else ""
    return r.metric, f"{form(r.value):>6}{' %' if share else ''}", span


def _chance(r: Result) -> str:
    return f"  p={r.detail['p']:.2g} that chance parts it from the first" if "p" in r.detail else ""
