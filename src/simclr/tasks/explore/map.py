"""Map of a collection: its embeddings in two dimensions."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np

from simclr.errors import SettingError
from simclr.evaluation.projection import pca
from simclr.report.gallery import Section, mosaic
from simclr.report.scatter import embedding_map
from simclr.settings import setting
from simclr.tasks.explore.collection import Collection, Exploration


@dataclass(frozen=True, kw_only=True)
class Map(Exploration):
    """Map of a collection: its embeddings in two dimensions.

    `pca`: the first two principal components of the centred embeddings, exactly. `umap`: UMAP (McInnes et al. 2018) by
    cosine, if umap-learn is installed. The table has one row for each image: path, row, x, y, and label if there are
    labels. The page shows at most 10,000 points, coloured by label, with a thumbnail of each image that is pointed at,
    and one image in each cell of a grid.
    """

    command: ClassVar[str] = "explore map"

    projection: Literal["pca", "umap"] = "pca"
    """projection to two dimensions"""
    k: int = setting(10, at_least=1)
    """number of neighbours"""
    seed: int = 0
    """seed of UMAP"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection == "umap" and find_spec("umap") is None:
            remedy = "pip install 'simclr-toolkit[explore]'"
            raise SettingError("projection", "pca, since umap-learn is not installed", "umap", remedy)

    def __call__(self) -> dict[str, Any]:
        self.paths()
        collection = self.collection()
        points, answer = self.project(collection)
        columns: dict[str, Any] = {"path": collection.paths, "row": np.arange(len(points)), "x": points[:, 0]}
        columns["y"] = points[:, 1]
        names, read = collection.paths, collection.read
        if (labels := collection.label_names()) is not None:
            columns["label"] = labels
        note = "Point at an image, or go through them with the arrow keys. A class can be highlighted."
        plots = [
            Section(
                "Map", svg=embedding_map(points, names, collection.labels, collection.classes or (), read), note=note
            )
        ]
        if read is not None:
            plots.append(Section("Images", svg=mosaic(points, names, read), note="One image in each cell of a grid."))
        return self.write(columns, plots, answer, collection.read)

    def project(self, collection: Collection) -> tuple[np.ndarray, str]:
        """Return the points (N, 2) and a sentence about them."""
        if self.projection == "pca":
            points, explained = pca(collection.features)
            shares = " and ".join(f"{100 * part:.1f} %" for part in explained)
            return points, f"The first two principal components explain {shares} of the variance."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of umap-learn, about its own dependencies
            from umap import UMAP

            umap = UMAP(n_neighbors=self.k, metric="cosine", random_state=self.seed, n_jobs=1)
            points = umap.fit_transform(collection.features.numpy())
        return points.astype(np.float64), f"UMAP of {len(points):,} embeddings with {self.k} neighbours."
