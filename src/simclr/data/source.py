"""Where images come from: a `Source` is a sorted, stable sequence of images that may carry labels."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt8

from simclr.data.decoding import Picture, as_rgb
from simclr.data.labels import Annotation, annotation_of, encode_labels, label_of
from simclr.data.paths import Paths
from simclr.errors import UnreadableImage

HOLDOUT = 0.2  # fraction of the images in the "test" part of a source that comes without its own


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """N images in a fixed order.

    `paths` names each image, relative to the source. `has_own_split` says that the source itself tells
    training images from test images. `annotation` is (labels, classes), see `encode_labels`.
    """

    name: str
    paths: Paths
    split: str = "all"
    annotation: Annotation = (None, None)
    has_own_split: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """Indices into `classes`, -1 where an image has no label; None for a source without labels."""
        return self.annotation[0]

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, the same for all splits; None for a source without labels."""
        return self.annotation[1]

    def path(self, i: int | np.integer) -> str:
        """The name of image i within the source."""
        return self.paths[i]

    def stored(self, i: int | np.integer) -> Path | bytes | None:
        """The file of image i, or where it lies; None for images that are not files."""
        return None

    def open(self, i: int | np.integer) -> Picture:
        """Image i, for reading what is needed of it; raises UnreadableImage."""
        stored, name = self.stored(i), self.paths[i]
        return Picture.of(self.read(i), name) if stored is None else Picture.open(stored, name)

    def read(self, i: int | np.integer) -> UInt8[np.ndarray, "h w 3"]:
        """Image i as uint8 (H, W, 3); raises UnreadableImage."""
        return self.open(i).read().pixels

    @property
    def images(self) -> UInt8[np.ndarray, "n h w 3"] | None:
        """All images, for a source that lies in memory; otherwise None."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the number of images, all names, and the content of at most 10,000 of them
        (spaced evenly; for files, their sizes), so that a changed data set is noticed without reading it."""
        digest = hashlib.blake2b(self.paths.text.tobytes(), digest_size=8)
        digest.update(self.paths.offsets.tobytes())
        for i in np.unique(np.linspace(0, len(self) - 1, min(len(self), 10_000)).astype(np.int64)):
            digest.update(self._content(i))
        return digest.hexdigest()

    def _content(self, i: np.integer) -> bytes:
        """What tells the content of image i; nothing where reading it is the only way to know."""
        return b""

    def select(self, indices: Int[np.ndarray, " m"], split: str) -> "Source":
        """The images at `indices`, in that order, as the part called `split`."""
        labels, classes = self.annotation
        kept = (None if labels is None else labels[indices], classes)
        paths = self.paths.select(indices)
        return replace(self, paths=paths, annotation=kept, split=split, **self._selected(indices))

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        """What else a kind of source keeps for each image, at `indices`."""
        return {}

    def holdout(self, split: str) -> "Source":
        """The "train" or "test" part of a source that has no split of its own.

        An image is in the test part if a hash of its name falls below 0.2, so it stays there when others are added.
        """
        test = self.paths.hashes() < HOLDOUT
        indices = np.flatnonzero(test if split == "test" else ~test)
        if not len(indices):
            raise ValueError(f"{self.name}: its {len(self)} images are too few to hold out a {split} part")
        return self.select(indices, split)


@dataclass(frozen=True, kw_only=True, eq=False)
class Files(Source):
    """Image files; `paths` are relative to the folder `root`."""

    root: Path

    def stored(self, i: int | np.integer) -> Path:
        return self.root / self.paths[i]

    def _content(self, i: np.integer) -> bytes:
        try:
            return b"%d" % os.stat(self.stored(i)).st_size
        except OSError:
            return b"?"


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays(Source):
    """Images in memory: `pixels` uint8 (N, H, W, 3)."""

    pixels: UInt8[np.ndarray, "n h w 3"]

    @property
    def images(self) -> UInt8[np.ndarray, "n h w 3"]:
        return self.pixels

    def read(self, i: int | np.integer) -> UInt8[np.ndarray, "h w 3"]:
        return self.pixels[i]

    def _content(self, i: np.integer) -> bytes:
        return self.pixels[i].tobytes()

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        return {"pixels": self.pixels[indices]}


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects(Source):
    """Any object with `__len__` and `__getitem__`; `rows` are the items of it that belong to the source.

    An item is an image (see `as_rgb`), a tuple (image, label), or a dict with "image" and perhaps "label".
    Labels are taken from the attributes that torchvision's data sets have (see `annotation_of`); without
    them, all items are read when labels are first asked for.
    """

    items: Any
    rows: Int64[np.ndarray, " n"]

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        if self.annotation[0] is not None:
            return self.annotation[0]
        labels, _ = self._found
        return None if labels is None else labels[self.rows]

    @property
    def classes(self) -> list[str] | None:
        return self._found[1] if self.annotation[1] is None else self.annotation[1]

    @cached_property
    def _found(self) -> Annotation:
        found = annotation_of(self.items)
        if found[0] is not None or label_of(self.items[0]) is None:
            return found
        return encode_labels([str(label_of(self.items[i])) for i in range(len(self.items))])

    def read(self, i: int | np.integer) -> UInt8[np.ndarray, "h w 3"]:
        try:
            item = self.items[int(self.rows[i])]
        except Exception as error:  # the data set is the user's and may raise anything
            reason = f"the data set raised {type(error).__name__}: {' '.join(str(error).split())}"
            raise UnreadableImage(self.paths[i], reason) from error
        return as_rgb(image_of(item), self.paths[i])

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        return {"rows": self.rows[indices]}


def image_of(item: Any) -> Any:
    """The image in an item of a data set."""
    if isinstance(item, dict):
        return item.get("image")
    return item[0] if isinstance(item, tuple | list) and item else item
