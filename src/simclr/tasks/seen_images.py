"""Whether the trainings of an encoder have read the images on which it is measured.

A training is known by the name and the fingerprint of its images, which its card records. Only if the images that the
same settings select from the measured data have both, is it known which images of these data it has read.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simclr.data import Source, open_source
from simclr.data.specs import open_for_pretraining
from simclr.data.splits import holdout_mask, split_off
from simclr.errors import DataError, Error
from simclr.evaluation.protocol import with_labels
from simclr.models.card import Card
from simclr.models.onnx_program import load_onnx
from simclr.runs.recipe import saved_recipe
from simclr.runs.results import named_run, places_of_start, provenance, run_folder
from simclr.runs.run import Run
from simclr.tasks.labelled import LabelSubset


class PastTraining(NamedTuple):
    """A training of an encoder."""

    task: str
    """pretrain, finetune or distill"""
    images: tuple[str | None, str | None]
    """name and fingerprint of the images, None if the card does not say them"""
    recipe: Mapping[str, Any]
    """settings of the run, as far as they are saved"""

    def has_read(self, data: Any, split: str) -> bool | None:
        """Return whether it has read images of a split of `data`, test or train; None if unknown."""
        if not isinstance(data, str | os.PathLike):  # objects of one class and length have the same fingerprint
            return None
        try:
            images = self._selected(data)
            if self._is_of(images):
                return split == "train" or images.split != "train"
            if not images.has_own_split and self._is_of(open_source(data, "all")):  # labels were added since
                return True
        except (Error, OSError):  # data from which these settings select nothing
            pass
        return None

    def _selected(self, data: Any) -> Source:
        """Return the images of `data` that a training with these settings reads."""
        if self.task != "finetune":
            source = open_for_pretraining(data)
            return split_off(source, count)[0] if (count := self.recipe.get("held_out")) else source
        train = open_source(data, "train")
        if train.labels is None:
            raise DataError(train.name, "has no labels")
        train = with_labels(train)
        fraction, listed, seed = (self.recipe.get(name) for name in ("fraction", "labelled", "seed"))
        subset = LabelSubset(fraction=fraction or 1.0, labelled=Path(listed) if listed else None, seed=seed or 0)
        held_out = holdout_mask(train, seed=subset.seed) if self.recipe.get("measure") == "held-out" else None
        return subset.subset(train, held_out)[0]

    def _is_of(self, source: Source) -> bool:
        return self.images == (source.name, source.fingerprint)


def trainings_of(run: str | Path) -> list[PastTraining | None]:
    """Return the trainings that gave an encoder its weights, the last one first; None for those without a record, such
    as of converted weights."""
    try:
        named = named_run(run)
        if named.is_timm:
            return [None]
        is_program = named.path.suffix == ".onnx"
        folder = named.path.parent if is_program else run_folder(run)
        card = load_onnx(named.path)[1] if is_program else Card.read(folder, named.encoder)
        source, record = card.source, _record_of(card, folder, named.encoder)
        recipe, weights = saved_recipe(record), Run(record, writes=False).recorded_data.get("init")
    except (Error, OSError):
        return [None]
    match source.get("task"):
        case "pretrain":
            starts = [source["init"].get("name")] if isinstance(source.get("init"), dict) else []
        case "finetune":
            starts = [] if recipe.get("from_scratch") else [source.get("run")]
        case "distill":
            starts = [source.get("teacher"), *filter(None, [recipe.get("start")])]
        case _:
            return [None]
    training = PastTraining(source["task"], (source.get("data"), source.get("fingerprint")), recipe)
    return [training, *(each for start in starts for each in _trainings_of_start(start, record, weights))]


def _record_of(card: Card, folder: Path, encoder: str | None) -> Path:
    """Return the folder of the run of a card: its own, or the one that the folder of a classifier or a program of that
    run lies in."""
    for place in (folder, folder.parent):
        if (place / "recipe.yaml").is_file() and Card.read(place, encoder).source == card.source:
            return place
    return folder


def _trainings_of_start(start: Any, run: Path, weights: Any) -> list[PastTraining | None]:
    """Return the trainings of the run that the one in `run` started from, if it still has the `weights` of then; both
    may have been moved together."""
    for place in places_of_start(start, run) if weights else ():
        try:
            if provenance(place).get("weights") == str(weights)[:12]:
                return trainings_of(place)
        except (Error, OSError):
            pass
    return [None]


def seen_by(trainings: Sequence[PastTraining | None], data: Any, split: str = "test") -> bool | None:
    """Return whether one of the trainings has read images of a split of `data`; None if unknown."""
    answers = [training and training.has_read(data, split) for training in trainings]
    return True if True in answers else None if None in answers else False


def evaluated_images(run: str | Path, data: Any, test: Source) -> dict[str, Any]:
    """Return the fields of a `Result` that describe the images of a test split of `data` on which `run` is measured."""
    has_test = test.has_own_split or test.labels is not None
    seen = seen_by(trainings_of(run), data)
    return {"evaluated_on": "test" if has_test else "unlabelled", "seen_in_pretraining": seen}
