"""What all measurements share: what is measured, the form of a result, and the printed table."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.data.opening import why_unlabelled
from simclr.data.several import class_names, has_several, occurring
from simclr.embed import load, raw_pixels, untrained
from simclr.evaluation import METRICS
from simclr.features import Features as Measured
from simclr.features import extract
from simclr.layers import read_layer
from simclr.machine import Machine
from simclr.outputs import keep_older, writable_file
from simclr.run import code_hash, environment, plain, write_atomically
from simclr.significance import bootstrap_interval, class_interval, resampled_interval
from simclr.views.evaluation import Preprocess

__all__ = ["Candidate", "Measured", "Result", "candidates", "destination", "labelled", "report"]

COPIES = 6  # of the features, for which there must be room on the device that fits a classifier on them
SPLIT = "fitted on train, chosen on held-out train, read once on test"
FROZEN = "the whole encoder, batch statistics included"


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
    if has_several(train) and not several:
        raise ValueError(f"{train.name}: its images show several classes (labels such as a|b); use simclr transfer")
    names = class_names(train)
    seen, asked = occurring(train), occurring(test)
    if len(seen) < 2:
        raise ValueError(f"{train.name} has one class only in its training part; measuring needs at least two")
    strange = [names[c] for c in sorted(asked - seen)]
    if strange:
        raise ValueError(
            f"{test.name}: no training image of the class {', '.join(map(repr, strange[:5]))}; "
            "add some, or take its test images out"
        )
    return train, test


def _with_labels(source: Source) -> Source:
    known = (source.labels >= 0).nonzero()[0]
    return source if len(known) == len(source) else source.select(known, source.split)


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
    keep_older(path)
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")
    return content


def destination(task: Any) -> Path:
    """The file a measurement writes: `task.out`, or one beside the encoder that has the name of the task.

    Asked for before anything is computed: ValueError if nothing can be written there.
    """
    folder = task.run.parent if task.run.suffix == ".safetensors" else task.run
    return writable_file(task.out or folder / f"{type(task).__name__.lower()}.json")


def provenance(run: Path) -> dict[str, str]:
    """The hash of a run's recipe (of its card where the weights came without one) and of its weights."""
    folder = run.parent if run.suffix == ".safetensors" else run
    recipe = folder / "recipe.yaml"
    found = {"recipe": recipe if recipe.is_file() else folder / "card.json", "weights": folder / "encoder.safetensors"}
    return {what: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for what, path in found.items() if path.is_file()}


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
