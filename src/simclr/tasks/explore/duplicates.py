"""Groups of exact copies and near-duplicates."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from simclr.data.survey import survey
from simclr.evaluation.distances import duplicate_groups, duplicate_threshold
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import SHOWN, Collection, NeighbourSearch, note

NEIGHBOURS = 10  # of each image; chains of them make larger groups


@dataclass(frozen=True, kw_only=True)
class Duplicates(NeighbourSearch):
    """Groups of exact copies and near-duplicates among images.

    Two images are near-duplicates if the distance of their embeddings is below a fraction of the median distance to the
    nearest neighbour, a rule that does not depend on the scale of the embedding. Chains of near-duplicates are one
    group. Images of a group with the same pixels are exact copies. The table has one row for each image of a group:
    group, path, row, distance to the nearest other image, kind (exact or near; empty if no images are given), and keep,
    true for the first image of each group. The search for neighbours is exact for up to 300,000 images; beyond, faiss
    is used if it is installed, with a recall of 0.99, which is measured and stated.
    """

    command: ClassVar[str] = "explore duplicates"

    threshold: float = setting(0.3, above=0, below=1)
    """largest distance of near-duplicates, as a fraction of the median distance to the nearest neighbour"""

    def __call__(self) -> dict[str, Any]:
        self.paths()
        collection = self.collection()
        neighbours = self.neighbourhood(collection.features, NEIGHBOURS)
        distances = neighbours.distances[:, 0]
        limit = duplicate_threshold(distances, self.threshold)
        groups = duplicate_groups(neighbours, limit)
        rows = np.lexsort((np.arange(len(groups)), groups))[(groups < 0).sum() :]
        count = len(np.unique(groups[rows]))
        pixels = digests(collection, rows)
        same = Counter(pixels.values())
        columns = {
            "group": groups[rows],
            "path": [collection.paths[i] for i in rows.tolist()],
            "row": rows,
            "distance": distances[rows],
            "kind": ["" if not pixels else "exact" if same[pixels.get(i)] > 1 else "near" for i in rows.tolist()],
            "keep": np.diff(groups[rows], prepend=-1) > 0,
        }
        surplus = len(rows) - count
        answer = (
            f"{surplus:,} of {len(groups):,} images are duplicates of others, in {count:,} groups (distance of at most "
            f"{limit:.3g}, {self.threshold:g} of the median distance to the nearest neighbour)."
            f"{note(neighbours)}"
        )
        sections = [
            Section(
                f"Group {g}", [Tile(i, f"{collection.paths[i]}\n{distances[i]:.3f}") for i in members[:SHOWN].tolist()]
            )
            for g, members in enumerate(np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)[:SHOWN])
            if len(members)
        ]
        written = self.write(columns, sections, answer, collection.read)
        return {"groups": count, "duplicates": surplus, "threshold": limit, **written}


def digests(collection: Collection, rows: np.ndarray) -> dict[int, bytes]:
    """Return a hash of the pixels of each of these images that can be read; nothing without images."""
    if collection.source is None:
        return {}
    numbers = {int(collection.rows[i]): i for i in rows.tolist()}
    images, _ = survey(collection.source, numbers)
    return {numbers[image.row]: image.digest for image in images}
