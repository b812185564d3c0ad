"""What all measurements share: what is measured, the form of a result, and the printed table."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr.data import Source, open_source
from simclr.embed import load, raw_pixels, untrained
from simclr.evaluation import bootstrap_interval
from simclr.features import Features as Measured
from simclr.features import extract
from simclr.machine import Machine
from simclr.run import environment, plain, write_atomically
from simclr.views.evaluation import Preprocess

__all__ = ["Candidate", "Measured", "Result", "candidates", "labelled", "report"]


@dataclass(frozen=True)
class Candidate:
    """Something that gives features: the pretrained network, the same untrained, or the pixels."""

    name: str
    network: Callable[[Tensor], Tensor]
    preprocess: Preprocess

    def features(self, source: Source, machine: Machine) -> Measured:
        """Features of every readable image of a source."""
        device = torch.device(machine.kind)
        network = self.network.to(device) if isinstance(self.network, nn.Module) else _Pixels()
        return extract(network, source, self.preprocess, device=device, workers=machine.worker_processes)


class _Pixels(nn.Module):
    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return raw_pixels(x)


def candidates(run: Path, baselines: bool) -> list[Candidate]:
    """The pretrained encoder of a run, last; before it, on request, what it has to beat."""
    encoder = load(run)
    trained = Candidate("pretrained encoder", encoder.network, encoder.preprocess)
    if not baselines:
        return [trained]
    # pixels at 32 px at most: more of them cost much and tell a linear classifier nothing
    small = Preprocess(min(encoder.preprocess.size, 32), crop=encoder.preprocess.crop)
    return [
        Candidate("raw pixels", raw_pixels, small),
        Candidate("untrained encoder", untrained(encoder.card), encoder.preprocess),
        trained,
    ]


def labelled(data: Any) -> tuple[Source, Source]:
    """Training and test part of a labelled source; ValueError that says what to do where that is not to be had."""
    train, test = open_source(data, "train"), open_source(data, "test")
    for source in (train, test):
        if source.labels is None or (source.labels < 0).all():
            raise ValueError(
                f"{source.name} has no labels; measuring needs them: one sub-folder a class, or a table with the "
                "columns path and label"
            )
    seen = set(train.labels.tolist())
    if len(seen - {-1}) < 2:
        raise ValueError(f"{train.name} has one class only in its training part; measuring needs at least two")
    strange = [train.classes[c] for c in sorted(set(test.labels.tolist()) - seen)]
    if strange:
        raise ValueError(f"{test.name}: no training image of the class {', '.join(map(repr, strange[:5]))}")
    return _with_labels(train), _with_labels(test)


def _with_labels(source: Source) -> Source:
    known = (source.labels >= 0).nonzero()[0]
    return source if len(known) == len(source) else source.select(known, source.split)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure and how it was come by."""

    name: str
    protocol: str
    metric: str
    value: float
    interval: tuple[float, float]
    """95 % of what another draw of as many test images might have shown (bootstrap)"""
    n: int
    """test images"""
    frozen: str = "the whole encoder, batch statistics included"
    layer: str = "h"
    split: str = "fitted on train, chosen on held-out train, read once on test"
    detail: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        protocol: str,
        scores: Float[Tensor, "n c"],
        labels: Int64[Tensor, " n"],
        metric: Callable[[Tensor, Tensor], float],
        **detail: Any,
    ) -> "Result":
        correct = (scores.argmax(1) == labels).cpu().numpy()
        return cls(
            name=name, protocol=protocol, metric="top1" if metric.__name__ == "accuracy" else metric.__name__,
            value=metric(scores, labels), interval=bootstrap_interval(correct), n=len(labels), detail=detail,
        )  # fmt: skip


def report(results: list[Result], task: Any, path: Path) -> dict[str, Any]:
    """Print the table, write it to `path` as JSON, and return what was written. An older file keeps its name with
    a number added: no measurement is lost."""
    print(table(results))
    content = {
        "task": type(task).__name__.lower(),
        "settings": plain(task),
        "results": [asdict(result) for result in results],
        "environment": environment(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _keep_older(path)
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    return content


def table(results: list[Result]) -> str:
    """Results as aligned text."""
    width = max(len(r.name) for r in results)
    what = max(len(r.protocol) for r in results)
    return "\n".join(
        f"{r.name:<{width}}  {r.protocol:<{what}}  {r.metric} {100 * r.value:5.1f} %"
        f"  [{100 * r.interval[0]:.1f}, {100 * r.interval[1]:.1f}]  n={r.n:,}"
        for r in results
    )


def _keep_older(path: Path) -> None:
    if not path.exists():
        return
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(older)



