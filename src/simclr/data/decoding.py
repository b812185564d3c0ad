"""From an image file, or an image object, to one uint8 array (H, W, 3).

What is decided here, for every format alike:

- the EXIF orientation is applied;
- the first frame of an animation is taken;
- transparency is composited on white;
- greyscale is repeated over the three channels;
- 16- and 32-bit grey values are stretched from the image's own 0.1st to 99.9th percentile over 0..255, since
  Pillow's own conversion clips every value above 255 to white;
- a truncated file is an error: Pillow can fill the missing part with grey, and a network would learn that.

Pillow reads every format. Usual JPEG files go to the same libjpeg-turbo directly (see `jpeg`), which gives the very
same pixels without Pillow's copies: in 0.8 of the time at 500 x 375 pixels, a quarter at 4000 x 3000.
"""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from simclr.data import jpeg
from simclr.errors import UnreadableImage

if "SIMCLR_MAX_PIXELS" in os.environ:  # of an image, above Pillow's limit; the environment reaches worker processes
    if not os.environ["SIMCLR_MAX_PIXELS"].isdecimal():
        raise ValueError(f"SIMCLR_MAX_PIXELS is {os.environ['SIMCLR_MAX_PIXELS']!r}; it must be a number of pixels")
    Image.MAX_IMAGE_PIXELS = -(-int(os.environ["SIMCLR_MAX_PIXELS"]) // 2)  # Pillow refuses twice that
_ORIENTATION_TAG = 0x0112
_TRANSPOSED, _UPSIDE_DOWN, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


class DecodedRegion(NamedTuple):
    """Pixels of a picture, perhaps reduced, perhaps not all of them."""

    pixels: UInt8[np.ndarray, "h w 3"]
    corner: tuple[int, int]
    """(y, x) of the first pixel in the picture, in pixels of the reduced one"""
    whole: tuple[int, int]
    """(height, width) of the picture as reduced"""

    def map_box(self, box: Int[np.ndarray, " 4"], size: tuple[int, int]) -> Int[np.ndarray, " 4"]:
        """A box (y, x, height, width) of the picture of `size` -> where it is here; edges go to the nearest pixel."""
        edges = []
        for start, extent, side, here, corner in zip(box[:2], box[2:], size, self.whole, self.corner, strict=True):
            first = min(round(start * here / side), here - 1)
            edges.append((first - corner, max(round((start + extent) * here / side) - first, 1)))
        return np.array(edges, np.int64).T.reshape(4)


@dataclass(frozen=True)
class LazyImage:
    """An image of known size whose pixels are read when it is known which are needed: `of` arrays, or `open` files."""

    name: str
    size: tuple[int, int]
    """(height, width), upright"""
    _pixels: UInt8[np.ndarray, "h w 3"] | None = None
    _jpeg: bytes | None = None
    _orientation: int = 1

    @staticmethod
    def of(pixels: UInt8[np.ndarray, "h w 3"], name: str = "") -> "LazyImage":
        return LazyImage(name, pixels.shape[:2], pixels)

    @staticmethod
    def open(file: bytes | str | Path, path: str | None = None) -> "LazyImage":
        """The picture in `file` (its bytes or where it lies); see `decode`."""
        name = path or ("<bytes>" if isinstance(file, bytes) else str(file))
        with _named(name):
            content = file if isinstance(file, bytes) else Path(file).read_bytes()
            if not content:
                raise UnreadableImage(name, "empty file")
            size = jpeg.header(content)
            if size is None or size[0] * size[1] > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
                return LazyImage.of(_by_pillow(content), name)
            orientation = 1
            if jpeg.may_be_turned(content):
                with _quiet(), Image.open(io.BytesIO(content)) as picture:  # Pillow knows where it is said
                    orientation = _orientation(picture)
            return LazyImage(name, size[::-1] if orientation in _TRANSPOSED else size, None, content, orientation)

    @property
    def _stored_size(self) -> tuple[int, int]:
        return self.size[::-1] if self._orientation in _TRANSPOSED else self.size

    def read(self, box: jpeg.Box | None = None, reduction: int = 1) -> DecodedRegion:
        """Return the pixels, or those in the `box` (y, x, height, width) and some beside it, which may not be exact.

        `reduction` 2, 4 or 8 allows a JPEG file to be read at a half, a quarter or an eighth of its side: libjpeg
        computes a reduced image from the low frequencies alone, so that each pixel is about the mean of those that it
        replaces, and a side has ceil(side / reduction) of them. Raises UnreadableImage.
        """
        if self._jpeg is None:
            return DecodedRegion(self._pixels, (0, 0), self.size)
        whole = (-(-self.size[0] // reduction), -(-self.size[1] // reduction))
        found = None
        if box is not None:
            start = [at // reduction for at in box[:2]]
            # a side that is not a multiple of `reduction` moves the edges that `map_box` rounds
            more = 2 if reduction > 1 else 0
            ends = [-(-(at + n) // reduction) + more for at, n in zip(box[:2], box[2:], strict=True)]
            stop = [min(end, side) for end, side in zip(ends, whole, strict=True)]
            needed = (*start, stop[0] - start[0], stop[1] - start[1])
            found = jpeg.region(self._jpeg, _box_as_stored(needed, whole, self._orientation), reduction)
        if found is not None:
            pixels, (y, x) = found
            corner = _box_upright((y, x, *pixels.shape[:2]), whole, self._orientation)[:2]
            return DecodedRegion(_upright(pixels, self._orientation), corner, whole)
        pixels = jpeg.whole(self._jpeg, self._stored_size, reduction)
        if pixels is not None:
            return DecodedRegion(_upright(pixels, self._orientation), (0, 0), whole)
        with _named(self.name):
            pixels = _by_pillow(self._jpeg)  # which reads or refuses a file with a fault
        return DecodedRegion(pixels, (0, 0), pixels.shape[:2])


def decode(file: bytes | str | Path, path: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in `file` (its bytes or where it lies) -> uint8 (H, W, 3).

    Raises UnreadableImage, which calls the image `path` (default: where it lies). Pictures of more than
    about 179 million pixels are refused, as Pillow does, or of more than the environment's SIMCLR_MAX_PIXELS.
    """
    return LazyImage.open(file, path).read().pixels


def file_form(file: bytes | Path) -> str:
    """Format, colour mode and bits a channel of an image file as it is stored, such as "JPEG RGB 8 bit".

    Pillow gives the 16-bit channels of a colour image as 8 bits, and says so here.
    """
    try:
        with _quiet(), Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            bits = {"1": 1, "I": 32, "F": 32}.get(picture.mode, 16 if picture.mode.startswith("I;16") else 8)
            return f"{picture.format} {picture.mode} {bits} bit"
    except Exception as error:
        raise UnreadableImage("<bytes>" if isinstance(file, bytes) else str(file), _reason(error)) from error


def as_rgb(image: object, path: str) -> UInt8[np.ndarray, "h w 3"]:
    """An image as an object -> uint8 (H, W, 3).

    `image` is a PIL image, a uint8 array (H, W, 3) or (H, W), or a uint8 tensor (3, H, W) or (1, H, W).
    Raises UnreadableImage(path, reason) for anything else.
    """
    if isinstance(image, Image.Image):
        try:
            with _quiet():
                return _rgb(image)
        except Exception as error:  # a lazily opened file is decoded only now
            raise UnreadableImage(path, _reason(error)) from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 2:
            return np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3):
        return np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
    found = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
    allowed = "a PIL image, a uint8 array (H, W, 3) or (H, W), or a uint8 tensor (3, H, W)"
    raise UnreadableImage(path, f"{found} is not an image: allowed are {allowed}")


def stretch(values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Grey values of any depth -> uint8: the 0.1st to 99.9th percentile fills 0..255, a constant gives 0.

    Percentiles, since one hot pixel of a sensor would leave the picture black; where they coincide, the
    whole range. Not-a-number and infinities count as the lowest value.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    known = values[finite].astype(np.float64)
    low, high = np.percentile(known, (0.1, 99.9))
    if low == high:
        low, high = known.min(), known.max()
    grey = np.where(finite, values, low).astype(np.float64) - low
    return np.rint(np.clip(grey / ((high - low) or 1.0), 0.0, 1.0) * 255.0).astype(np.uint8)


def _by_pillow(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    with _quiet(), Image.open(io.BytesIO(content)) as picture:
        return _rgb(picture)


def _rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    picture.load()
    orientation = _orientation(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _upright(np.repeat(stretch(np.asarray(picture))[:, :, None], 3, axis=2), orientation)
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return _upright(np.array(picture if picture.mode == "RGB" else picture.convert("RGB")), orientation)


def _upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image as it is stored -> as it is meant, after EXIF 2.3, tag 0x0112; other orientations than 1 to 8 are 1."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in _UPSIDE_DOWN:
        pixels = pixels[::-1]
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _box_upright(box: jpeg.Box, whole: tuple[int, int], orientation: int) -> jpeg.Box:
    """Where a box of the stored image is in the upright one, whose (height, width) is `whole`."""
    y, x, height, width = (*box[1::-1], *box[:1:-1]) if orientation in _TRANSPOSED else box
    y = whole[0] - y - height if orientation in _UPSIDE_DOWN else y
    x = whole[1] - x - width if orientation in _MIRRORED else x
    return y, x, height, width


def _box_as_stored(box: jpeg.Box, whole: tuple[int, int], orientation: int) -> jpeg.Box:
    """The reverse of `_box_upright`."""
    y, x, height, width = box
    y = whole[0] - y - height if orientation in _UPSIDE_DOWN else y
    x = whole[1] - x - width if orientation in _MIRRORED else x
    return (x, y, width, height) if orientation in _TRANSPOSED else (y, x, height, width)


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata do not make the pixels unreadable
        return 1


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever is raised inside, as an UnreadableImage that names the image."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image in a format that Pillow reads") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise UnreadableImage(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; set SIMCLR_MAX_PIXELS in the environment to allow more"
        )
    return " ".join(str(error).split()) or type(error).__name__


_lock = threading.Lock()
_inside = 0
_filters: list = []


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute Pillow's warnings about odd metadata and large pictures.

    `warnings.catch_warnings` in several threads can leave the filters of one behind in another, so the first
    thread in mutes and the last one out restores.
    """
    global _inside, _filters
    with _lock:
        if _inside == 0:
            _filters = warnings.filters[:]
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                warnings.resetwarnings()
                warnings.filters.extend(_filters)
