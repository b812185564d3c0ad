"""Health of an encoder without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from simclr.data import open_source
from simclr.errors import SettingError
from simclr.evaluation.features import extract
from simclr.evaluation.figures import write_results
from simclr.evaluation.health import HealthCheck
from simclr.models.pretrained import Encoder, load, untrained
from simclr.report.pictures import neighbour_sheet
from simclr.runs.files import number_existing, save_picture
from simclr.runs.machine import Device, is_first_process
from simclr.runs.recipe import saved_recipe
from simclr.runs.results import Result, result_path, run_folder, unit_of
from simclr.settings import check_settings, setting
from simclr.tasks.seen_images import evaluated_images
from simclr.views import Views, view_policies


@dataclass(frozen=True, kw_only=True)
class Health:
    """Alignment, uniformity, effective rank, standard deviation, contrastive accuracy and entropy of an encoder without
    any label, beside the untrained network, and a sheet of nearest neighbours.

    Pretraining on a source that has neither labels nor a test split has seen its images. `simclr pretrain --held_out`
    keeps some of them out of training and measures those during the run. Each result says which images it is of.
    """

    command: ClassVar[str] = "health"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    data: str
    """images; a source without a test split is divided by a hash of the file names"""
    images: int = setting(2048, at_least=2)
    """maximum number of images; contrastive accuracy, entropy and ranks depend on it"""
    temperature: float | None = setting(None, above=0)
    """temperature of the softmax whose entropy is measured; that of the run if not given"""
    views: Views | None = None
    """augmentation policy of the views that are compared; that of the run if not given"""
    neighbours: int = setting(5000, at_least=0)
    """maximum number of images among which neighbours are found for the sheet; 0 draws no sheet"""
    out: Path | None = None
    """result file; RUN/health.json if not given, with the sheet beside it. An older file keeps its content under a
    number"""
    seed: int = 0
    """seed of every random draw"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        path = result_path(self)
        if path.suffix.lower() == ".png":
            raise SettingError("out", "the path of a JSON file, not of the sheet beside it (.png)", str(path))
        encoder = load(self.run)
        source = encoder.scaled(open_source(self.data, "test"))
        views, temperature = self.settings(encoder)
        workers, images = self.machine.worker_processes, evaluated_images(self.run, self.data, source)
        split = f"{SPLITS[images['evaluated_on']]}, {SEEN[images['seen_in_pretraining']]}"
        check = HealthCheck.of(source, views, temperature, most=self.images, seed=self.seed, workers=workers)
        results = []
        fresh = Encoder(untrained(encoder.card), encoder.card.build_head(), encoder.card)
        for name, role, model in (("untrained encoder", "baseline", fresh), ("pretrained encoder", "model", encoder)):
            model.to(self.machine.kind)
            values = check(model.network, model.head or nn.Identity(), self.machine.kind)
            results += [
                Result(
                    name=name, role=role, protocol="health", metric=metric, value=value, unit=unit_of(metric),
                    interval_of="none", n=check.views.shape[1], **images,
                    layer="h" if metric == "rankme_h" or not model.head else "z",
                    transform="two views as in training", split=split,
                    detail={"temperature": temperature},
                )
                for metric, value in values.items()
            ]  # fmt: skip
        content = write_results(results, self, path)
        if self.neighbours and is_first_process():
            shown = source.part(0, min(self.neighbours, len(source)))
            device = self.machine.kind
            features = extract(encoder.network, shown, encoder.preprocess, device=device, workers=workers)
            sheet = path.with_suffix(".png")
            number_existing(sheet)
            save_picture(neighbour_sheet(features, shown, seed=self.seed), sheet)
            print(f"wrote {sheet}")
        return content

    def settings(self, encoder: Encoder) -> tuple[Views, float]:
        """Return views and temperature: those given, else those of a pretraining run, else those of the paper."""
        recipe = saved_recipe(run_folder(self.run))
        if "views" not in recipe:  # distillation has a temperature too, of another softmax
            recipe = {"views": {"size": encoder.card.image_size}}
        saved = Views(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe["views"].items()})
        own = view_policies(saved, recipe.get("policies") or ())[0]
        views, sizes = self.views or own, {own.size, encoder.card.image_size}
        if views.size not in sizes:
            raise SettingError("views.size", f"{max(sizes)}, the image size of {self.run}", views.size)
        return views, self.temperature or recipe.get("temperature", 0.1)


SPLITS = {"test": "test images, no labels", "unlabelled": "a fifth of the images, no labels"}
SEEN = {
    True: "which pretraining has seen", False: "which pretraining has left out",
    None: "it is unknown whether pretraining has seen them",
}  # fmt: skip
