"""Health of an encoder without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from torch import nn

from simclr.data import Source, open_source
from simclr.evaluation.features import extract
from simclr.evaluation.figures import Result, report
from simclr.evaluation.health import HealthCheck
from simclr.models.pretrained import Encoder, load, untrained
from simclr.report.pictures import neighbour_sheet
from simclr.runs.files import number_existing
from simclr.runs.machine import Machine
from simclr.runs.results import destination
from simclr.views import Views


@dataclass(frozen=True, kw_only=True)
class Health:
    """Alignment, uniformity, effective rank, deviations, contrastive accuracy and entropy of an encoder, and a sheet
    of nearest neighbours; without any label, beside the untrained network.

    Pretraining has seen the images of a source without labels and without a test part: of such a source `--held_out`
    of `simclr pretrain` keeps some aside, which are measured during the run. Each result says which images it is of.
    """

    command: ClassVar[str] = "health"

    run: Path
    """run folder of the encoder"""
    data: str
    """images; of those with a test part that part, else a fifth"""
    images: int = 2048
    """most images; contrastive accuracy, entropy and ranks depend on their number"""
    temperature: float | None = None
    """of contrastive accuracy's entropy; the run's own if not given"""
    views: Views | None = None
    """views that are compared; those the run was trained on if not given"""
    neighbours: int = 5000
    """most images among which the sheet's neighbours are looked for; 0 draws no sheet"""
    out: Path | None = None
    """file for the result; RUN/health.json if not given. The sheet lies beside it"""
    seed: int = 0
    """of the views"""
    machine: Machine = Machine()
    """device and workers"""

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError(f"images must be at least 2, got {self.images}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.neighbours < 0:
            raise ValueError(f"neighbours must be at least 0, got {self.neighbours}")

    def __call__(self) -> dict[str, Any]:
        path, encoder, source = destination(self), load(self.run), open_source(self.data, "test")
        views, temperature = self.settings(encoder)
        check = HealthCheck.of(source, views, temperature, most=self.images, seed=self.seed)
        results = []
        fresh = Encoder(untrained(encoder.card), encoder.card.build_head(), encoder.card)
        for name, one in (("untrained encoder", fresh), ("pretrained encoder", encoder)):
            one.to(self.machine.kind)
            head = one.head or nn.Identity()
            found = check(one.network, head, self.machine.kind)
            layers = {"rankme_h": "h"}
            results += [
                Result(
                    name=name, protocol="health", metric=metric, value=value, interval=None, interval_of="none",
                    n=check.views.shape[1], layer=layers.get(metric, "z" if one.head else "h"),
                    transform="two views as in training", split=images_of(source),
                    detail={"temperature": temperature},
                )
                for metric, value in found.items()
            ]  # fmt: skip
        content = report(results, self, path)
        if self.neighbours:
            few = source.select(torch.arange(min(self.neighbours, len(source))).numpy(), source.split)
            features = extract(
                encoder.network, few, encoder.preprocess, device=self.machine.kind,
                workers=self.machine.worker_processes,
            )  # fmt: skip
            sheet = path.with_suffix(".png")
            number_existing(sheet)
            neighbour_sheet(features, few, seed=self.seed).save(sheet)
            print(f"wrote {sheet}")
        return content

    def settings(self, encoder: Encoder) -> tuple[Views, float]:
        """Views and temperature: as given, else of the run, else of the paper."""
        recipe = self.run / "recipe.yaml"
        trained = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in trained.get("views", {}).items()}
        views = self.views or Views(**(own or {"size": encoder.card.image_size}))
        if views.size != encoder.card.image_size:
            raise ValueError(f"views.size is {views.size}; the card of {self.run} says {encoder.card.image_size} px")
        return views, self.temperature or trained.get("temperature", 0.1)


def images_of(source: Source) -> str:
    """What a result says of the images: whether pretraining on the same data leaves them out."""
    if source.has_own_split:
        return "the test part, no labels"
    if source.labels is not None:
        return "a fifth of the images, which pretraining leaves out, no labels"
    return "a fifth of the images, which pretraining on the same data has seen, no labels"
