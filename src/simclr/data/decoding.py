"""Decoding of image files and image objects to uint8 arrays (H, W, 3).

The rules are the same for every format:

- the EXIF orientation is applied;
- of an animation, the first frame is read;
- transparency is composited on white;
- greyscale is repeated over the three channels;
- values of 16 or 32 bits are stretched from the image's own 0.1st to 99.9th percentile, in all channels together, to
  0..255. Pillow would clip every grey value above 255 to white, and drop the lower byte of colours, so that the images
  of a 12-bit camera would be nearly black;
- a truncated file is an error: Pillow can fill the missing part with grey, and a network would learn that;
- large text and colour profiles of PNG files, which Pillow rejects, are ignored.

Pillow reads every format. Usual JPEG files are decoded by the same libjpeg-turbo directly (see `jpeg`), which yields
the same pixels without Pillow's copies: in 0.8 of the time at 500 x 375 pixels, a quarter at 4000 x 3000.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Real, UInt8
from PIL import Image

from simclr.data import jpeg
from simclr.data.formats import (
    MAX_FILE_BYTES,
    MIRRORED,
    TRANSPOSED,
    UPSIDE_DOWN,
    file_form,
    muted,
    named_errors,
    orientation_of,
    read_image,
    reason_of,
    stretch,
    to_rgb,
    turn_upright,
)
from simclr.data.stored import is_dicom, read_dicom
from simclr.errors import UnreadableImage
from simclr.runs.reading import read_bytes

__all__ = ["DecodedRegion", "LazyImage", "as_rgb", "decode", "file_form", "stretch"]


class DecodedRegion(NamedTuple):
    """Decoded pixels of an image or of a region of it, at full or reduced size."""

    pixels: Real[np.ndarray, "h w c"]
    corner: tuple[int, int]
    """(y, x) of the first pixel in the image, in pixels of the reduced image"""
    whole: tuple[int, int]
    """(height, width) of the reduced image"""

    def map_box(self, box: Int[np.ndarray, " 4"], size: tuple[int, int]) -> Int[np.ndarray, " 4"]:
        """Return a box (y, x, height, width) of the image of `size` in pixels of the region; edges are rounded."""
        if self.whole == size and self.corner == (0, 0):
            return box
        edges = []
        for start, extent, side, here, corner in zip(box[:2], box[2:], size, self.whole, self.corner, strict=True):
            first = min(round(start * here / side), here - 1)
            edges.append((first - corner, max(round((start + extent) * here / side) - first, 1)))
        return np.array(edges, np.int64).T.reshape(4)


@dataclass(frozen=True)
class LazyImage:
    """Image of known size whose pixels are decoded on demand: made `of` an array, or by `open` from a file."""

    name: str
    size: tuple[int, int]
    """(height, width), upright"""
    _pixels: Real[np.ndarray, "h w c"] | None = None
    _jpeg: bytes | None = None
    _orientation: int = 1

    @staticmethod
    def of(pixels: Real[np.ndarray, "h w c"], name: str = "") -> "LazyImage":
        return LazyImage(name, pixels.shape[:2], pixels)

    @staticmethod
    def open(file: bytes | str | Path, path: str | None = None) -> "LazyImage":
        """Open an image file, given by its content or its path; see `decode`."""
        name = path or ("<bytes>" if isinstance(file, bytes) else str(file))
        with named_errors(name):
            content = file if isinstance(file, bytes) else read_bytes(file, MAX_FILE_BYTES, UnreadableImage)
            if not content:
                raise UnreadableImage(name, "empty file")
            size = jpeg.header(content)
            if size is None or size[0] * size[1] > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
                return LazyImage.of(_dicom_as_rgb(content) if is_dicom(content) else read_image(content), name)
            orientation = 1
            if jpeg.may_be_turned(content):
                with muted(), Image.open(io.BytesIO(content)) as image:  # Pillow finds it in EXIF and in XMP
                    orientation = orientation_of(image)
            return LazyImage(name, size[::-1] if orientation in TRANSPOSED else size, None, content, orientation)

    @property
    def _stored_size(self) -> tuple[int, int]:
        return self.size[::-1] if self._orientation in TRANSPOSED else self.size

    def read(self, box: jpeg.Box | None = None, reduction: int = 1) -> DecodedRegion:
        """Return the pixels, or those in the `box` (y, x, height, width) and some beside it, which may not be exact.

        `reduction` 2, 4 or 8 allows a JPEG file to be read at a half, a quarter or an eighth of its side: libjpeg
        computes a reduced image from the low frequencies alone, so that each pixel is about the mean of those that it
        replaces, and a side has ceil(side / reduction) of them. Raises UnreadableImage.
        """
        if self._jpeg is None:
            return DecodedRegion(self._pixels, (0, 0), self.size)
        whole = (-(-self.size[0] // reduction), -(-self.size[1] // reduction))
        region = None
        if box is not None:
            start = [at // reduction for at in box[:2]]
            # a side that is not a multiple of `reduction` moves the edges that `map_box` rounds
            more = 2 if reduction > 1 else 0
            ends = [-(-(at + n) // reduction) + more for at, n in zip(box[:2], box[2:], strict=True)]
            stop = [min(end, side) for end, side in zip(ends, whole, strict=True)]
            needed = (*start, stop[0] - start[0], stop[1] - start[1])
            region = jpeg.region(self._jpeg, _box_as_stored(needed, whole, self._orientation), reduction)
        if region is not None:
            pixels, (y, x) = region
            corner = _box_upright((y, x, *pixels.shape[:2]), whole, self._orientation)[:2]
            return DecodedRegion(turn_upright(pixels, self._orientation), corner, whole)
        pixels = jpeg.whole(self._jpeg, self._stored_size, reduction)
        if pixels is not None:
            return DecodedRegion(turn_upright(pixels, self._orientation), (0, 0), whole)
        with named_errors(self.name):
            pixels = read_image(self._jpeg)  # which reads or rejects a file with a fault
        return DecodedRegion(pixels, (0, 0), pixels.shape[:2])

    def reduced(self, side: int) -> "LazyImage":
        """Return the image, decoded and reduced to a shorter side of `side` pixels if it is larger.

        JPEG files are decoded at no less than twice that; the rest is Pillow's Lanczos filter. Raises UnreadableImage.
        """
        scale = side / min(self.size)
        if scale >= 1:
            return self
        reduction = next(k for k in (8, 4, 2, 1) if k == 1 or k * scale <= 0.5)
        height, width = (max(round(length * scale), 1) for length in self.size)
        pixels = self.read(reduction=reduction).pixels
        # the last row and column of a reduced image may stand for fewer pixels than the others
        factor = 1 if pixels.shape[:2] == self.size else reduction
        covered = (0.0, 0.0, self.size[1] / factor, self.size[0] / factor)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, covered)
        return LazyImage.of(np.asarray(image), self.name)


def decode(file: bytes | str | Path, path: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file, given by its content or its path, to uint8 (H, W, 3).

    Raises UnreadableImage, in which the image is called `path` (default: the path of the file). Images of more than
    about 179 million pixels are rejected, as by Pillow, or of more than the environment's SIMCLR_MAX_PIXELS; at 16 bits
    a colour or 32 bits, of more than half of that. Decoding one takes at most about 2 GB.
    """
    return LazyImage.open(file, path).read().pixels


def as_rgb(image: object, path: str) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image object to uint8 (H, W, 3).

    `image` is a PIL image, a uint8 array (H, W, 3), (H, W, 1) or (H, W), or a uint8 tensor (3, H, W) or (1, H, W).
    Raises UnreadableImage(path, reason) for anything else.
    """
    if isinstance(image, Image.Image):
        try:
            with muted():
                return to_rgb(image)
        except Exception as error:  # a lazily opened file is decoded only now
            raise UnreadableImage(path, reason_of(error)) from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
            return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3):
        return np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
    given = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
    allowed = "a PIL image, a uint8 array (H, W, 3), (H, W, 1) or (H, W), or a uint8 tensor (3, H, W)"
    raise UnreadableImage(path, f"{given} is not an image, which must be {allowed}")


def _dicom_as_rgb(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    values = read_dicom(content)
    pixels = values if values.dtype == np.uint8 else stretch(values)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _box_upright(box: jpeg.Box, whole: tuple[int, int], orientation: int) -> jpeg.Box:
    """Return a box of the stored image in the upright image, whose (height, width) is `whole`."""
    y, x, height, width = (*box[1::-1], *box[:1:-1]) if orientation in TRANSPOSED else box
    y = whole[0] - y - height if orientation in UPSIDE_DOWN else y
    x = whole[1] - x - width if orientation in MIRRORED else x
    return y, x, height, width


def _box_as_stored(box: jpeg.Box, whole: tuple[int, int], orientation: int) -> jpeg.Box:
    """Return a box of the upright image in the stored image."""
    y, x, height, width = box
    y = whole[0] - y - height if orientation in UPSIDE_DOWN else y
    x = whole[1] - x - width if orientation in MIRRORED else x
    return (x, y, width, height) if orientation in TRANSPOSED else (y, x, height, width)
