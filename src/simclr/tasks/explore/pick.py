"""Selection of the images to label next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int64

from simclr.data.tables import read_columns
from simclr.errors import DataError, SettingError
from simclr.evaluation.distances import coverage
from simclr.evaluation.picking import pick_diverse, pick_margin, pick_random, pick_typical
from simclr.report.gallery import Section, Tile
from simclr.settings import setting
from simclr.tasks.explore.collection import SHOWN, Collection, Exploration

DRAWS = 5  # of the random baseline
ENOUGH = 10  # labels per class from which on the margin of a classifier says more than the density


class Labelled(dict[int, str]):
    """Rows that are labelled already, with their labels, empty if unknown."""

    @property
    def rows(self) -> Int64[np.ndarray, " m"]:
        """The rows."""
        return np.array(list(self), np.int64)


@dataclass(frozen=True, kw_only=True)
class Pick(Exploration):
    """Selection of the images to label next.

    `typical`, for few labels: the densest image of each of the largest clusters without a label (TypiClust, Hacohen et
    al. 2022). `margin`, for more: of the images that logistic regression on the labelled ones is least sure of, those
    that are farthest from each other and from the labelled ones (k-centre). `diverse`: k-centre among all images.
    `random`: the baseline. `auto` is typical until there are ten labels for each class, then margin. The table has the
    columns path, row, order and label, which is empty if the label is unknown: fill it in, and give the table, if it is
    a .csv file, as DATA to learn from it, or as `after` to continue. The paths of files are relative to the table.
    Coverage, the mean distance of an image to the nearest labelled one, is printed beside that of random picks; lower
    is better.
    """

    command: ClassVar[str] = "explore pick"

    budget: int = setting(100, at_least=1)
    """number of images to pick"""
    method: Literal["auto", "typical", "margin", "diverse", "random"] = "auto"
    """rule of the selection"""
    after: list[Path] | None = None
    """tables (.csv) of the images that are labelled already, such as earlier picks: columns path and label"""
    seed: int = 0
    """seed of clusters and random draws"""

    def __call__(self) -> dict[str, Any]:
        table, _ = self.paths()
        collection = self.collection()
        labelled = self.labelled_rows(collection)
        free = len(collection.paths) - len(labelled)
        if self.budget > free:
            raise SettingError("budget", f"at most {free}, the number of images that are not labelled", self.budget)
        method = self.rule(labelled)
        rows = self.pick(collection, labelled, method)
        names = collection.label_names()
        columns = {
            "path": collection.paths_from(table.parent, rows.tolist()),
            "row": rows,
            "order": np.arange(1, len(rows) + 1),
            "label": [names[i] if names else "" for i in rows.tolist()],
        }
        covered = coverage(collection.features, np.concatenate([labelled.rows, rows]))
        draws = [pick_random(collection.features, self.budget, labelled.rows, self.seed + k) for k in range(DRAWS)]
        baseline = [coverage(collection.features, np.concatenate([labelled.rows, draw])) for draw in draws]
        answer = (
            f"{len(rows):,} images picked ({method}) after {len(labelled):,} labelled ones. Mean distance of an image "
            f"to the nearest labelled one: {covered:.3f}; with random picks {np.mean(baseline):.3f} (of {DRAWS} draws)."
        )
        tiles = [Tile(i, f"{k}. {collection.paths[i]}") for k, i in enumerate(rows[:SHOWN].tolist(), 1)]
        written = self.write(columns, [Section("Images to label", tiles)], answer, collection.read)
        return {"method": method, "coverage": covered, "random": float(np.mean(baseline)), **written}

    def labelled_rows(self, collection: Collection) -> Labelled:
        """Return the images of the tables `after`, by their paths from the table or their names in the collection."""
        names = {name: i for i, name in enumerate(collection.paths)}
        own, labelled = collection.label_names(), Labelled()
        for path in self.after or ():
            columns, n = read_columns(path), range(len(collection.paths))
            numbers = names | dict(zip(collection.paths_from(path.parent, n), n, strict=True))
            texts = columns.get("label") or [""] * len(columns["path"])
            for name, text in zip(columns["path"], texts, strict=True):
                if name not in numbers:
                    raise DataError(path, f"names {name!r}, which is not in the collection", names=("path",))
                labelled[numbers[name]] = text or (own[numbers[name]] if own else "")
        return labelled

    def rule(self, labelled: Labelled) -> str:
        """Return the method, with auto resolved by the number of labels."""
        if self.method != "auto":
            return self.method
        known = [label for label in labelled.values() if label]
        classes = len(set(known))
        return "margin" if classes > 1 and len(known) >= ENOUGH * classes else "typical"

    def pick(self, collection: Collection, labelled: Labelled, method: str) -> Int64[np.ndarray, " m"]:
        """Return the rows of the picked images in order."""
        features = collection.features
        match method:
            case "typical":
                return pick_typical(features, self.budget, labelled.rows, self.seed)
            case "diverse":
                return pick_diverse(features, self.budget, labelled.rows)
            case "random":
                return pick_random(features, self.budget, labelled.rows, self.seed)
        known = Labelled({row: label for row, label in labelled.items() if label})
        if not known:
            remedy = "Fill in the column label of the earlier picks"
            raise SettingError("after", "tables with labels for margin", str(self.after or "none"), remedy)
        values = np.unique(list(known.values()), return_inverse=True)[1]
        return pick_margin(features, self.budget, labelled.rows, dict(zip(known, values.tolist(), strict=True)))
