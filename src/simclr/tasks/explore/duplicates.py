"""Groups of exact copies and near-duplicates."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from simclr.data.survey import survey
from simclr.evaluation.distances import copies, duplicate_groups, duplicate_threshold
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import SHOWN, Collection, NeighbourSearch, note

NEIGHBOURS = 10  # of each image; chains of them make larger groups


@dataclass(frozen=True, kw_only=True)
class Duplicates(NeighbourSearch):
    """Groups of exact copies and near-duplicates among images.

    Two images are near-duplicates if the distance of their embeddings is below a fraction of the median distance to the
    nearest neighbour, a rule that does not depend on the scale of the embedding, or if miniatures of them are alike,
    which finds those that were resized, compressed or mirrored, whatever the encoder. Chains of near-duplicates are one
    group. Images of a group with the same pixels are exact copies. The table has one row for each image of a group:
    group, path, row, distance to the nearest other image, kind (exact, copy by its miniature, or near by its embedding;
    empty if no images are given), and keep, true for the first image of each group. The search for neighbours is exact
    for up to 300,000 images; beyond, faiss is used if it is installed, with a recall of 0.99, which is measured and
    stated.
    """

    command: ClassVar[str] = "explore duplicates"

    threshold: float = setting(0.3, above=0, below=1)
    """largest distance of near-duplicates, as a fraction of the median distance to the nearest neighbour"""
    pictures: bool = True
    """comparison of miniatures too, if there are images; all of them are read, at 7 kB of memory each"""

    def __call__(self) -> dict[str, Any]:
        self.paths()
        collection = self.collection()
        neighbours = self.neighbourhood(collection.features, NEIGHBOURS)
        distances = neighbours.distances[:, 0]
        limit = duplicate_threshold(distances, self.threshold)
        looks = appearances(collection) if self.pictures else Appearances({}, None)
        pairs = None if looks.miniatures is None else copies(looks.miniatures, search=self.neighbourhood)
        groups = duplicate_groups(neighbours, limit, pairs)
        rows = np.lexsort((np.arange(len(groups)), groups))[(groups < 0).sum() :]
        count = len(np.unique(groups[rows]))
        pixels = looks.digests or appearances(collection, rows).digests
        same, alike = Counter(pixels[i] for i in rows.tolist() if i in pixels), set(() if pairs is None else pairs.flat)
        columns = {
            "group": groups[rows],
            "path": [collection.paths[i] for i in rows.tolist()],
            "row": rows,
            "distance": distances[rows],
            "kind": [
                "" if not pixels else "exact" if same[pixels.get(i)] > 1 else "copy" if i in alike else "near"
                for i in rows.tolist()
            ],
            "keep": np.diff(groups[rows], prepend=-1) > 0,
        }
        surplus = len(rows) - count
        answer = (
            f"{surplus:,} of {len(groups):,} images are duplicates of others, in {count:,} groups (distance of at most "
            f"{limit:.3g}, {self.threshold:g} of the median distance to the nearest neighbour"
            f"{'' if pairs is None else ', or alike as miniatures'})."
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


class Appearances(NamedTuple):
    """How the images of a collection look."""

    digests: dict[int, bytes]
    """a hash of the pixels of each image that can be read"""
    miniatures: Float[torch.Tensor, "n h w c"] | None
    """zeros for images that cannot be read; None if not all images are looked at, or there are none"""


def appearances(collection: Collection, rows: np.ndarray | None = None) -> Appearances:
    """Return how these images of a collection look, or all; nothing without images."""
    if collection.source is None:
        return Appearances({}, None)
    chosen = range(len(collection.rows)) if rows is None else rows.tolist()
    numbers = {int(collection.rows[i]): i for i in chosen}
    images, _ = survey(collection.source, numbers, small=rows is None)
    found = {numbers[image.row]: image.digest for image in images}
    if rows is not None or not images:
        return Appearances(found, None)
    miniatures = torch.zeros(len(collection.rows), *images[0].miniature.shape)
    for image in images:
        miniatures[numbers[image.row]] = torch.from_numpy(image.miniature)
    return Appearances(found, miniatures)
