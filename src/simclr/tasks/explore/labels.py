"""Suspected label errors."""

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from simclr.errors import DataError, SettingError
from simclr.evaluation.label_errors import cleanlab_issues, cross_validated_probabilities, self_confidence
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import SHOWN, Exploration


@dataclass(frozen=True, kw_only=True)
class Labels(Exploration):
    """Suspected label errors: labels that a classifier fitted on other images finds improbable.

    Each image has class probabilities by logistic regression on the embeddings of the other folds. Images are ranked by
    the probability of the given label (self-confidence), lowest first. Which of them are suspected is decided by the
    confident learning of cleanlab (Northcutt et al. 2021) if it is installed; else those for which another class is
    more probable. Classes with a single image are left out. The table has one row for each image: path, row, label,
    suggested, confidence and suspect.
    """

    command: ClassVar[str] = "explore labels"

    engine: Literal["auto", "cleanlab", "confidence"] = "auto"
    """rule that decides which labels are suspected; auto uses cleanlab if it is installed"""
    folds: int = setting(5, at_least=2)
    """number of folds of the cross-validation"""
    seed: int = 0
    """seed of the folds"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "cleanlab" and find_spec("cleanlab") is None:
            remedy = "pip install 'simclr-toolkit[explore]'"
            raise SettingError("engine", "auto or confidence, since cleanlab is not installed", "cleanlab", remedy)

    def __call__(self) -> dict[str, Any]:
        self.paths()
        collection = self.collection()
        labels, classes = self.labelled(collection)
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        rows = np.flatnonzero((labels >= 0) & (counts[labels] > 1))
        present, given = np.unique(labels[rows], return_inverse=True)
        if len(present) < 2:
            raise DataError(self.run, "has fewer than two classes with at least two images", "Give more labels")
        probabilities = cross_validated_probabilities(
            collection.features[torch.from_numpy(rows)], torch.from_numpy(given), len(present),
            folds=self.folds, seed=self.seed,
        )  # fmt: skip
        uses_cleanlab = self.engine != "confidence" and find_spec("cleanlab") is not None
        scores, suspect = (cleanlab_issues if uses_cleanlab else self_confidence)(probabilities, given)
        order = np.argsort(scores, kind="stable")
        names = np.array(classes, object)[present]
        columns = {
            "path": [collection.paths[i] for i in rows[order].tolist()],
            "row": rows[order],
            "label": names[given[order]].tolist(),
            "suggested": names[probabilities[order].argmax(1)].tolist(),
            "confidence": scores[order],
            "suspect": suspect[order],
        }
        rule = "confident learning of cleanlab" if uses_cleanlab else "another class is more probable"
        agreement = float((probabilities.argmax(1) == given).mean())
        answer = (
            f"{suspect.sum():,} of {len(rows):,} labels are suspected ({rule}); the cross-validated classifier agrees "
            f"with {100 * agreement:.1f} % of the labels."
        )
        shown = zip(
            rows[order].tolist(), *(columns[name] for name in ("label", "suggested", "confidence")), strict=True
        )
        tiles = [Tile(i, f"{collection.paths[i]}\n{p:.3f}", f"{a} → {b}") for i, a, b, p in islice(shown, SHOWN)]
        section = Section("Least probable labels", tiles, note="given label → most probable class, confidence")
        written = self.write(columns, [section], answer, collection.read)
        return {"suspects": int(suspect.sum()), "agreement": agreement, "rule": rule, **written}
