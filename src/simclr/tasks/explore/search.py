"""Search of a collection for images similar to given ones."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from simclr.data import open_source
from simclr.data.embeddings import is_embeddings, read_embeddings
from simclr.data.paths import EXTENSIONS
from simclr.errors import DataError, SettingError
from simclr.evaluation.approximate import SAMPLE, nearest_approximate
from simclr.evaluation.neighbours import nearest
from simclr.models.pretrained import load
from simclr.report.gallery import Section, Tile
from simclr.report.thumbnails import Reader
from simclr.settings import setting
from simclr.tasks.embed import embed_source, origin
from simclr.tasks.explore.collection import SHOWN, NeighbourSearch

EXACT = 1_000_000  # embeddings up to which `auto` searches exactly


@dataclass(frozen=True, kw_only=True)
class Search(NeighbourSearch):
    """Search of a collection for the images most similar to an image, or to each image of a folder.

    The similarity is the cosine of the embeddings; the search is exact for up to a million embeddings. Beyond, if faiss
    is installed and there are more than 256 queries, as few lists of an index are searched as a recall of 0.99 needs;
    the recall is measured and stated. The query is embedded by `encoder`, or is a file of embeddings itself. An image
    of the collection finds itself. The table has one row for each result: query, rank, path, row and cosine.
    """

    command: ClassVar[str] = "explore search"

    query: str
    """image, folder or other data to search for, or a file of embeddings"""
    encoder: str | None = None
    """run folder of the encoder that embeds the query (default: RUN, if it is not a file of embeddings)"""
    k: int = setting(10, at_least=1)
    """number of neighbours"""

    def __call__(self) -> dict[str, Any]:
        self.paths()
        if self.encoder is None and is_embeddings(self.run) and not is_embeddings(self.query):
            allowed = "the run folder of the encoder of the embeddings, which embeds the query"
            raise SettingError("encoder", allowed, "none")
        queries, names, read_query = self.queries()
        collection = self.collection()
        width = collection.features.shape[1]
        if queries.shape[1] != width:
            raise DataError(self.query, f"has embeddings of {queries.shape[1]} values, the collection of {width}")
        cosines, rows, how = self.search(collection.features, queries)
        n, k = len(collection.paths), rows.shape[1]
        columns = {
            "query": np.repeat(np.array(names, object), k).tolist(),
            "rank": np.tile(np.arange(1, k + 1), len(names)),
            "path": [collection.paths[i] for i in rows.ravel().tolist()],
            "row": rows.ravel(),
            "cosine": cosines.ravel(),
        }

        def read(i: int) -> np.ndarray:
            return collection.read(i) if i < n else read_query(i - n)

        sections = []
        for q, name in enumerate(names[:SHOWN]):
            matches = zip(rows[q].tolist(), cosines[q].tolist(), strict=True)
            tiles = [Tile(i, f"{collection.paths[i]}\n{cosine:.3f}") for i, cosine in matches]
            sections.append(Section(name, [Tile(n + q, name, "query"), *tiles] if read_query else tiles))
        what = names[0] if len(names) == 1 else f"each of {len(names):,} images"
        answer = f"The {k} nearest of {n:,} images to {what} ({how})."
        return {"queries": len(names), **self.write(columns, sections, answer, read if collection.read else None)}

    def search(self, bank: torch.Tensor, queries: torch.Tensor) -> tuple[np.ndarray, np.ndarray, str]:
        """Return cosines and rows of the neighbours of each query, and a note on the search."""
        large = len(bank) > EXACT and len(queries) > SAMPLE and find_spec("faiss") is not None
        if self.backend == "faiss" or (self.backend == "auto" and large):
            cosines, rows, recall = nearest_approximate(bank, queries, self.k)
            return cosines.numpy(), rows.numpy(), f"search by faiss, recall {recall:.4f} on a sample of the queries"
        cosines, rows = nearest(bank, queries, self.k)
        return cosines.numpy(), rows.numpy(), "exact search by cosine"

    def queries(self) -> tuple[torch.Tensor, list[str], Reader | None]:
        """Return the embeddings of the query, the names of its images, and a function that reads them."""
        if is_embeddings(self.query):
            content = read_embeddings(Path(self.query))
            return torch.from_numpy(np.asarray(content.features, np.float32)), content.paths, None
        run, layer = Path(self.encoder or self.run), self.layer
        if is_embeddings(self.run) and (made_with := read_embeddings(self.run).made_with):
            weights, layer = made_with
            if weights != origin(run, "", "", layer)["weights"]:
                raise DataError(self.run, f"was computed with other weights than those of {run}", "Name its encoder")
        encoder, path = load(run), Path(self.query)
        if path.is_file() and path.suffix[1:].lower().encode() in EXTENSIONS:
            features = encoder.embed([path], layer=layer)
            return torch.from_numpy(features), [path.name], lambda _: encoder.pixels(path, path.name)
        source = encoder.scaled(open_source(self.query, "all"))
        computed = embed_source(run, self.query, "all", layer, self.machine)
        rows = computed.indices.tolist()
        return computed.features, [source.path(i) for i in rows], lambda q: source.read(rows[q])
