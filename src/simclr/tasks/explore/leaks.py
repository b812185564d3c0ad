"""Near-duplicates of test images among the training images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from simclr.errors import DataError
from simclr.evaluation.distances import copies, distance_of_pairs, duplicate_threshold
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import SHOWN, NeighbourSearch, note
from simclr.tasks.explore.duplicates import Appearances, appearances


@dataclass(frozen=True, kw_only=True)
class Leaks(NeighbourSearch):
    """Near-duplicates of test images among the training images.

    The rules are those of `simclr explore duplicates`: the distance of a test image to the nearest training image is
    below a fraction of the median of these distances, or miniatures of the two are alike. The splits are those of the
    file of embeddings or of DATA. The table has one row for each such test image, nearest first: path and row of it,
    train_path and train_row, distance, and kind (exact, copy by its miniature, or near by its embedding; empty if no
    images are given). The search for neighbours is exact for up to 1e11 pairs of images; beyond, faiss is used if it is
    installed, with a recall of 0.99, which is measured and stated.
    """

    command: ClassVar[str] = "explore leaks"

    threshold: float = setting(0.3, above=0, below=1)
    """largest distance of near-duplicates, as a fraction of the median distance to the nearest neighbour"""
    pictures: bool = True
    """comparison of miniatures too, if there are images; all of them are read, at 7 kB of memory each"""

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
        near, nearest = distances <= limit, neighbours.rows[:, 0]
        looks = appearances(collection) if self.pictures else Appearances({}, None)
        alike = {}
        if looks.miniatures is not None:
            of_train, of_test = (looks.miniatures[torch.from_numpy(rows)] for rows in (train, test))
            alike = dict(copies(of_train, of_test, self.neighbourhood)[::-1].tolist())  # the nearest of each
            nearest[[*alike]] = [*alike.values()]
            distances = distance_of_pairs(bank[torch.from_numpy(nearest)], queries)
        leaks = np.array([i for i in np.argsort(distances, kind="stable") if near[i] or i in alike], np.int64)
        pairs = np.stack([test[leaks], train[nearest[leaks]]], 1)
        pixels = looks.digests or appearances(collection, np.unique(pairs)).digests
        kind = [
            "" if not pixels else "exact" if pixels.get(a) == pixels.get(b) else "copy" if i in alike else "near"
            for i, (a, b) in zip(leaks.tolist(), pairs.tolist(), strict=True)
        ]
        names = [[collection.paths[i] for i in pair] for pair in pairs.tolist()]
        columns = {
            "path": [own for own, _ in names], "row": pairs[:, 0], "train_path": [other for _, other in names],
            "train_row": pairs[:, 1], "distance": distances[leaks], "kind": kind,
        }  # fmt: skip
        answer = (
            f"{len(pairs):,} of {len(test):,} test images have a near-duplicate among the {len(train):,} training "
            f"images (distance of at most {limit:.3g}, {self.threshold:g} of the median distance to the nearest"
            f"{'' if looks.miniatures is None else ', or alike as miniatures'})."
            f"{note(neighbours)}"
        )
        sections = [
            Section(
                f"{names[k][0]}: {distances[leaks[k]]:.3f}", [Tile(i, collection.paths[i]) for i in pairs[k].tolist()]
            )
            for k in range(min(len(pairs), SHOWN))
        ]
        written = self.write(columns, sections, answer, collection.read)
        return {"leaks": len(pairs), "test": len(test), "threshold": limit, **written}
