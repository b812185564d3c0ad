"""Collection of images with their embeddings, and the settings and files that all explorations share."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64

from simclr.data import Source, open_source
from simclr.data.embeddings import Embeddings, is_embeddings, read_embeddings
from simclr.data.remote import is_url
from simclr.data.source import Files
from simclr.data.specs import why_unlabelled
from simclr.errors import DataError, RunError, SettingError, UnreadableImage
from simclr.evaluation.distances import Neighbourhood, neighbourhood
from simclr.models.pretrained import load
from simclr.report.gallery import Gallery, Section, write_gallery
from simclr.report.thumbnails import Reader
from simclr.runs.files import printable, require_new_file
from simclr.runs.machine import Device
from simclr.runs.results import named_run, require_run, run_folder
from simclr.runs.tables import Columns, require_table_path, write_columns
from simclr.settings import check_settings
from simclr.tasks.embed import embed_source, splits_of

SHOWN = 60  # groups or images of a page
COMPARED = 10**11  # pairs of embeddings up to which `auto` compares all of them: minutes on a few cores


class Collection(NamedTuple):
    """N images with their embeddings."""

    features: Float[torch.Tensor, "n d"]
    paths: Sequence[str]
    labels: Int64[np.ndarray, " n"] | None
    """-1 where an image has no label"""
    classes: list[str] | None
    split: Sequence[str] | None
    source: Source | None
    """the images, if they can be read"""
    rows: Int64[np.ndarray, " n"]
    """number of each image in `source`"""

    @property
    def read(self) -> Reader | None:
        """Function that reads an image of the collection; None without images."""
        source = self.source
        return None if source is None else lambda i: source.read(self.rows[i])

    def label_names(self) -> list[str] | None:
        """Return the name of the class of each image, empty for none."""
        return None if self.labels is None else [self.classes[y] if y >= 0 else "" for y in self.labels.tolist()]

    def paths_from(self, folder: Path, chosen: Sequence[int]) -> list[str]:
        """Return the paths by which a table in `folder` opens the chosen images; the names of images that are not
        files."""
        source = self.source
        if not isinstance(source, Files):
            return [self.paths[i] for i in chosen]
        root, start = os.path.realpath(source.root), os.path.realpath(folder)  # `..` of a link leads elsewhere
        files = (os.path.join(root, source.path(self.rows[i])) for i in chosen)
        try:
            return [os.path.relpath(file, start) for file in files]
        except ValueError:  # no path leads from one drive of Windows to another
            return [os.path.join(root, source.path(self.rows[i])) for i in chosen]


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Settings of an exploration: embeddings, images and the files to write."""

    command: ClassVar[str]

    run: Path
    """file of embeddings (.npz, .npy or .parquet), or RUN, whose encoder embeds DATA now"""
    data: str | None = None
    """images, in the order of the embeddings; without them, those that a file of `simclr embed` names"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4; a file of embeddings has its
    own"""
    out: Path | None = None
    """table to write, .csv or .parquet; a page of thumbnails, .html, is written beside it (default: a .csv beside the
    embeddings)"""
    overwrite: bool = False
    """replacement of existing files"""
    machine: Device = Device()
    """device and decoding processes"""

    def __post_init__(self) -> None:
        check_settings(self)

    def paths(self) -> tuple[Path, Path]:
        """Return the table and the page to write; raise SettingError if they exist or there are no images to embed,
        and RunError if RUN is neither embeddings nor a run."""
        if not is_embeddings(self.run):
            _require_origin(self.run)
            if self.data is None:
                raise SettingError("data", "given for a run, whose encoder embeds it", "none")
        what = self.command.split()[-1]
        stem = self.run.with_suffix("") if is_embeddings(self.run) else run_folder(self.run) / Path(str(self.data)).stem
        table = require_table_path(self.out or stem.with_name(f"{stem.name}-{what}.csv"), self.overwrite)
        return table, require_new_file(table.with_suffix(".html"), self.overwrite)

    def collection(self) -> Collection:
        """Return the images with their embeddings."""
        if not is_embeddings(self.run):
            computed = embed_source(self.run, str(self.data), "all", self.layer, self.machine)
            source, rows = load(self.run).scaled(open_source(self.data, "all")), computed.indices.numpy()
            names = [source.path(i) for i in rows.tolist()]
            labels = None if computed.labels is None else computed.labels.numpy()
            split = splits_of(str(self.data), "all", rows).tolist()
            return Collection(computed.features, names, labels, source.classes, split, source, rows)
        content = read_embeddings(self.run)
        source, rows = images_of(content, self.data, self.run)
        labels, classes = content.annotation
        if labels is None and source is not None and source.labels is not None:
            labels, classes = source.labels[rows], source.classes
        source = source if source is not None and is_displayable(source) else None
        features = torch.from_numpy(np.asarray(content.features, np.float32))
        split = content.split
        if split is None and self.data is not None:
            split = splits_of(self.data, "all", rows).tolist()
        return Collection(features, content.paths, labels, classes, split, source, rows)

    def labelled(self, collection: Collection) -> tuple[Int64[np.ndarray, " n"], list[str]]:
        """Return labels and classes of a collection; raise DataError if it has none."""
        if collection.labels is None or (collection.labels < 0).all():
            remedy = why_unlabelled(self.data) if self.data else "Give labelled images as DATA"
            raise DataError(self.run, "has no labels, which this command needs", remedy)
        return collection.labels, collection.classes

    def write(self, columns: Columns, sections: Sequence[Section], answer: str, read: Reader | None) -> dict[str, Any]:
        """Write table and page, print the answer, and return the paths of both."""
        table, page = self.paths()
        write_columns(table, columns)
        name = self.run.name if self.data is None else self.data
        write_gallery(Gallery(f"{self.command.split()[-1]}: {name}", answer, sections, read), page)
        print(printable(answer))
        print(f"wrote {table} and {page}")
        return {"out": table, "page": page}


@dataclass(frozen=True, kw_only=True)
class NeighbourSearch(Exploration):
    """Settings of an exploration that looks for nearest neighbours."""

    backend: Literal["auto", "exact", "faiss"] = "auto"
    """search for neighbours: exact, faiss (approximate, with exact similarities), or auto, as described above"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend == "faiss" and find_spec("faiss") is None:
            remedy = "pip install 'simclr-toolkit[explore]'"
            raise SettingError("backend", "exact, since faiss is not installed", "faiss", remedy)

    def neighbourhood(self, bank: torch.Tensor, k: int, queries: torch.Tensor | None = None) -> Neighbourhood:
        """Return the nearest neighbours by the search that the settings and the number of pairs ask for."""
        approximate = self.is_approximate(len(bank), len(bank if queries is None else queries))
        return neighbourhood(bank, k, queries, approximate=approximate)

    def is_approximate(self, bank: int, queries: int) -> bool:
        """Return whether the search for the neighbours of `queries` images among `bank` images is approximate."""
        many = bank * queries > COMPARED and find_spec("faiss") is not None
        return self.backend == "faiss" or (self.backend == "auto" and many)


def _require_origin(run: Path) -> None:
    """Raise RunError unless `run`, which is no file of embeddings, names a finished run or weights."""
    named, folder = named_run(run), run_folder(run)
    if not named.path.exists():
        raise RunError(run, "does not exist", "Name a file of embeddings, or a run and the images to embed")
    is_file = named.is_timm or named.path.suffix == ".onnx"
    if not is_file and not any((folder / name).is_file() for name in ("card.json", "recipe.yaml")):
        raise RunError(run, "is neither embeddings nor a run", "simclr embed makes embeddings of images")
    require_run(run)


def note(found: Neighbourhood) -> str:
    """Return a sentence about an approximate search; nothing about an exact one."""
    return "" if found.recall == 1.0 else f" Neighbours by faiss: recall {found.recall:.4f} on a sample."


def is_displayable(source: Source) -> bool:
    """Return whether the images can be read without the scaling that images other than 8-bit RGB need."""
    try:
        source.read(0)
    except UnreadableImage:
        return True
    except DataError:
        return False
    return True


def images_of(content: Embeddings, data: str | None, path: Path) -> tuple[Source | None, Int64[np.ndarray, " n"]]:
    """Return the images of a file of embeddings, None without any, and the number of each image in them.

    The names in the file decide; without names it must have an embedding for each image.
    """
    rows = np.arange(len(content.features))
    if data is None:
        source = find_images(content, path)
        return source, rows if source is None else content.indices
    part = content.data[1] if content.data is not None and content.data[0] == data else "all"
    source = open_source(data, part)  # of some data sets both splits number their images from 0
    numbers = {source.path(i): i for i in range(len(source))}
    if all(name in numbers for name in content.paths):
        return source, np.array([numbers[name] for name in content.paths], np.int64)
    if len(source) != len(rows):
        problem = f"has {len(rows)} embeddings, some without an image of that name among the {len(source)} of {data}"
        raise DataError(path, problem, "Give the images that were embedded")
    return source, rows


def find_images(content: Embeddings, path: Path) -> Source | None:
    """Return the images that a file of embeddings names, by their path from the working directory or from the folder of
    the file; None, with a warning, if they are not there under the same names: the embeddings are enough."""
    if content.data is None or content.indices is None:
        return None
    data, part = content.data
    downloads = data.startswith("torchvision:") or is_url(data)  # a file causes no download
    for place in () if downloads else dict.fromkeys((data, str(path.parent / data))):
        try:
            source = open_source(place, part)
        except (DataError, SettingError):
            continue
        if content.indices.max(initial=-1) < len(source) and all(
            source.path(i) == name for i, name in zip(content.indices.tolist(), content.paths, strict=True)
        ):
            return source
    reason = "are not opened from a file" if downloads else "are not there, or have changed"
    text = f"{path}: its images, {data}, {reason}, so the images are not compared or shown. Give them as DATA"
    print(printable(text), file=sys.stderr)
    return None
