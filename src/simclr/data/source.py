"""Sources: sorted, stable sequences of images that may have labels."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, Real, UInt8

from simclr.data.decoding import LazyImage, as_rgb
from simclr.data.labels import Annotation, annotation_of, encode_labels, has_label, label_of
from simclr.data.paths import Paths
from simclr.data.stored import Scaling, as_values, read_stored
from simclr.errors import DataError, UnreadableImage


class LeftOut(NamedTuple):
    """Files and folders of a data set that do not belong to its images."""

    skipped: Mapping[str, str] = {}
    """folders and links that were not entered, with the reason"""
    ignored: Mapping[str, int] = {}
    """number of files that are not images by extension, "" for none"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """N images in a fixed order."""

    name: str
    paths: Paths
    """name of each image, relative to the source"""
    split: str = "all"
    annotation: Annotation = (None, None)
    """labels and classes, see `encode_labels`"""
    groups: Int64[np.ndarray, " n"] | None = None
    """group of each image, such as the clip of a frame; splits never separate a group. None if each image is its own"""
    has_own_split: bool = False
    """whether the data set itself distinguishes training images from test images"""
    left_out: LeftOut = LeftOut()
    scaling: Scaling | None = None
    """how stored values become those of a network; None for 8-bit RGB images"""
    side: int | None = None
    """shorter side, pixels, to which larger images are reduced when they are read as 8-bit RGB; None for none"""

    def __len__(self) -> int:
        return len(self.paths)

    starts: ClassVar[Int64[np.ndarray, " k"] | None] = None
    """first image of each tar file and the number of images, if the images are read in the order of such files"""

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """Return indices into `classes`, -1 where an image has no label; None for a source without labels."""
        return self.annotation[0]

    @property
    def classes(self) -> list[str] | None:
        """Return the names of the classes, the same for all splits; None for a source without labels."""
        return self.annotation[1]

    def path(self, i: int | np.integer) -> str:
        """Return the name of image i within the source."""
        return self.paths[i]

    def stored(self, i: int | np.integer) -> Path | bytes | None:
        """Return the path or the content of the file of image i; None for images that are not files."""
        return None

    @property
    def channels(self) -> int:
        """Return the number of channels of the images as they are read."""
        return 3 if self.scaling is None else self.scaling.channels

    def open(self, i: int | np.integer) -> LazyImage:
        """Return image i, of which any region can then be read; raises UnreadableImage."""
        stored, name = (None if self.scaling else self.stored(i)), self.paths[i]
        if stored is None:
            return LazyImage.of(self.read(i), name)
        image = LazyImage.open(stored, name)
        return image if self.side is None else image.reduced(self.side)

    def read(self, i: int | np.integer) -> Real[np.ndarray, "h w c"]:
        """Return image i as uint8 (H, W, 3), or scaled, see `Scaling.apply`; raises UnreadableImage."""
        if self.scaling is None:
            return self._rgb(i)
        values = self.values(i)
        self.scaling.check(values, self.paths[i])
        return self.scaling.apply(values)

    def values(self, i: int | np.integer) -> Real[np.ndarray, "h w c"]:
        """Return image i with the channels and levels that are stored; raises UnreadableImage."""
        return read_stored(self.stored(i), self.paths[i])

    def _rgb(self, i: int | np.integer) -> UInt8[np.ndarray, "h w 3"]:
        return self.open(i).read().pixels

    @property
    def images(self) -> Real[np.ndarray, "n h w c"] | None:
        """Return all images of a source in memory, as `read` does; None for other sources."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits computed from the number of images, all names, and the content of at most 10,000
        of them (evenly spaced; for files, their sizes), so that a changed data set is noticed without reading it."""
        digest = hashlib.blake2b(self.paths.text.tobytes(), digest_size=8)
        digest.update(self.paths.offsets.tobytes())
        for i in np.unique(np.linspace(0, len(self) - 1, min(len(self), 10_000)).astype(np.int64)):
            digest.update(self._content(i))
        return digest.hexdigest()

    def _content(self, i: np.integer) -> bytes:
        """Return bytes that depend on the content of image i; none if only reading the image would give them."""
        return b""

    def part(self, start: int, stop: int) -> "Source":
        """Return the images start..stop, of the same split."""
        return self.select(np.arange(start, stop), self.split)

    def select(self, indices: Int[np.ndarray, " m"], split: str) -> "Source":
        """Return the images at `indices`, in that order, as the split called `split`."""
        labels, classes = self.annotation
        kept = (None if labels is None else labels[indices], classes)
        groups = None if self.groups is None else self.groups[indices]
        more = self._selected(indices)
        return replace(self, paths=self.paths.select(indices), annotation=kept, groups=groups, split=split, **more)

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        """Return the other fields of a kind of source that hold one value per image, at `indices`."""
        return {}


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
    """Images in memory, of one size."""

    pixels: Real[np.ndarray, "n h w c"]
    """values as stored"""

    @cached_property
    def images(self) -> Real[np.ndarray, "n h w c"]:
        if self.scaling is None:
            return self._as_rgb(self.pixels)
        self.scaling.check(self.pixels[0], self.name)
        return self.scaling.apply(self.pixels)

    def values(self, i: int | np.integer) -> Real[np.ndarray, "h w c"]:
        return self.pixels[i]

    def _rgb(self, i: int | np.integer) -> UInt8[np.ndarray, "h w 3"]:
        return self._as_rgb(self.pixels[i])

    def _as_rgb(self, pixels: Real[np.ndarray, "*n h w c"]) -> UInt8[np.ndarray, "*n h w 3"]:
        if not self._is_rgb:
            problem = f"its images are {pixels.dtype} with {pixels.shape[-1]} channels, not uint8 with 3 or 1"
            raise DataError(self.name, problem, "Pretrain with --channels NUMBER, or --keep_levels for 3 channels")
        return pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)

    @property
    def _is_rgb(self) -> bool:
        return self.pixels.dtype == np.uint8 and self.pixels.shape[3] in (1, 3)

    def _content(self, i: np.integer) -> bytes:
        return (self._rgb(i) if self._is_rgb else self.pixels[i]).tobytes()

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        return {"pixels": self.pixels[indices]}


class ItemLabels:
    """Labels of all items of a data set, found when they are first asked for.

    They are taken from the attributes that torchvision's data sets have (see `annotation_of`); without them, all items
    are read once. An item that raises has no label.
    """

    def __init__(self, items: Any):
        self._items = items

    @cached_property
    def annotation(self) -> Annotation:
        annotation = annotation_of(self._items)
        if annotation[0] is not None or not self._are_pairs():
            return annotation
        return encode_labels([label_of(self._item(i)) for i in range(len(self._items))])

    def _are_pairs(self) -> bool:
        readable = (item for i in range(len(self._items)) if (item := self._item(i)) is not None)
        return has_label(next(readable, None))

    def _item(self, i: int) -> Any:
        try:
            return self._items[i]
        except Exception:  # reading the image will give the reason
            return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects(Source):
    """Any object with `__len__` and `__getitem__`.

    An item is an image (see `as_rgb`), a tuple (image, label), or a dict with "image" and perhaps "label".
    """

    items: Any
    rows: Int64[np.ndarray, " n"]
    """items that belong to the source"""
    item_labels: ItemLabels
    """labels of all items, shared by all selections"""

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        if self.annotation[0] is not None:
            return self.annotation[0]
        labels, _ = self.item_labels.annotation
        return None if labels is None else labels[self.rows]

    @property
    def classes(self) -> list[str] | None:
        return self.item_labels.annotation[1] if self.annotation[1] is None else self.annotation[1]

    def values(self, i: int | np.integer) -> Real[np.ndarray, "h w c"]:
        return as_values(self._image(i), self.paths[i])

    def _rgb(self, i: int | np.integer) -> UInt8[np.ndarray, "h w 3"]:
        image = LazyImage.of(as_rgb(self._image(i), self.paths[i]), self.paths[i])
        return (image if self.side is None else image.reduced(self.side)).read().pixels

    def _image(self, i: int | np.integer) -> Any:
        try:
            return image_of(self.items[int(self.rows[i])])
        except Exception as error:  # the data set is the user's and may raise anything
            reason = f"the data set raised {type(error).__name__}: {' '.join(str(error).split())}"
            raise UnreadableImage(self.paths[i], reason) from error

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        return {"rows": self.rows[indices]}


def image_of(item: Any) -> Any:
    """Return the image in an item of a data set."""
    if isinstance(item, dict):
        return item.get("image")
    return item[0] if isinstance(item, tuple | list) and item else item
