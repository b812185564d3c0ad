"""Near-duplicates of test images among the training images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from simclr.errors import DataError
from simclr.evaluation.distances import duplicate_threshold
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import SHOWN, NeighbourSearch, note
from simclr.tasks.explore.duplicates import digests


@dataclass(frozen=True, kw_only=True)
class Leaks(NeighbourSearch):
    """Near-duplicates of test images among the training images.

    The rule is that of `simclr explore duplicates`, applied to the distance of each test image to the nearest training
    image: below a fraction of the median of these distances. The splits are those of the file of embeddings or of DATA.
    The table has one row for each such test image, nearest first: path and row of it, train_path and train_row,
    distance, and kind (exact or near; empty if no images are given). The search for neighbours is exact for up to 1e11
    pairs of images; beyond, faiss is used if it is installed, with a recall of 0.99, which is measured and stated.
    """

    command: ClassVar[str] = "explore leaks"

    threshold: float = setting(0.3, above=0, below=1)
    """largest distance of near-duplicates, as a fraction of the median distance to the nearest neighbour"""

    def __call__(self) -> dict[str, Any]:
        self.paths()
        collection = self.collection()
        if collection.split is None:
            raise DataError(self.run, "does not say which images are in the test split", "Give the images as DATA")
        split = np.array(collection.split)
        train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
        if not len(train) or not len(test):
            problem = f"has {len(train)} training and {len(test)} test images; both are needed"
            raise DataError(self.run, problem)
        bank, queries = (collection.features[torch.from_numpy(rows)] for rows in (train, test))
        neighbours = self.neighbourhood(bank, 1, queries)
        distances = neighbours.distances[:, 0]
        limit = duplicate_threshold(distances, self.threshold)
        order = np.argsort(distances, kind="stable")[: (distances <= limit).sum()]
        pairs = np.stack([test[order], train[neighbours.rows[order, 0]]], 1)
        pixels = digests(collection, np.unique(pairs))
        kind = ["" if not pixels else "exact" if pixels.get(a) == pixels.get(b) else "near" for a, b in pairs.tolist()]
        names = [[collection.paths[i] for i in pair] for pair in pairs.tolist()]
        columns = {
            "path": [own for own, _ in names], "row": pairs[:, 0], "train_path": [other for _, other in names],
            "train_row": pairs[:, 1], "distance": distances[order], "kind": kind,
        }  # fmt: skip
        answer = (
            f"{len(pairs):,} of {len(test):,} test images have a near-duplicate among the {len(train):,} training "
            f"images (distance of at most {limit:.3g}, {self.threshold:g} of the median distance to the nearest)."
            f"{note(neighbours)}"
        )
        sections = [
            Section(
                f"{names[k][0]}: {distances[order[k]]:.3f}", [Tile(i, collection.paths[i]) for i in pairs[k].tolist()]
            )
            for k in range(min(len(pairs), SHOWN))
        ]
        written = self.write(columns, sections, answer, collection.read)
        return {"leaks": len(pairs), "test": len(test), "threshold": limit, **written}
