"""Images that are far from all others."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from simclr.evaluation.distances import neighbourhood, robust_outliers
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import COMPARED, SHOWN, NeighbourSearch, note


@dataclass(frozen=True, kw_only=True)
class Outliers(NeighbourSearch):
    """Images that are far from all others, by the mean distance to their nearest neighbours.

    An image is an outlier if this score is above the median by more than `deviations` robust standard deviations,
    1.4826 times the median absolute deviation of the scores. The table has one row for each image, farthest first:
    path, row, score and outlier. The search for neighbours is exact for up to 300,000 images; beyond, faiss is used if
    it is installed, with a recall of 0.99, which is measured and stated; the scores of outliers are then computed again
    by the exact search.
    """

    command: ClassVar[str] = "explore outliers"

    k: int = setting(10, at_least=1)
    """number of neighbours"""
    deviations: float = setting(3.0, above=0)
    """threshold in robust standard deviations above the median"""

    def __call__(self) -> dict[str, Any]:
        self.paths()
        collection = self.collection()
        features = collection.features
        neighbours = self.neighbourhood(features, self.k)
        scores = neighbours.distances.mean(1)
        if self.is_approximate(len(features), len(features)):  # a neighbour that was missed makes an image look far
            far = np.flatnonzero(robust_outliers(scores, self.deviations)[0])
            far = far[np.argsort(-scores[far], kind="stable")[: COMPARED // len(features)]]
            rows = torch.from_numpy(far)
            scores[far] = neighbourhood(features, self.k, features[rows], rows).distances.mean(1)
        outlying, limit = robust_outliers(scores, self.deviations)
        order = np.argsort(-scores, kind="stable")
        names = [collection.paths[i] for i in order.tolist()]
        columns = {"path": names, "row": order, "score": scores[order], "outlier": outlying[order]}
        answer = (
            f"{outlying.sum():,} of {len(scores):,} images are outliers: their mean distance to {self.k} neighbours is "
            f"above {limit:.3g}, the median plus {self.deviations:g} robust standard deviations."
            f"{note(neighbours)}"
        )
        tiles = [Tile(i, f"{collection.paths[i]}\n{scores[i]:.3f}") for i in order[:SHOWN].tolist()]
        written = self.write(columns, [Section("Farthest from all others", tiles)], answer, collection.read)
        return {"outliers": int(outlying.sum()), "threshold": limit, **written}
