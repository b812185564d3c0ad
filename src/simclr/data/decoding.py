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
- the text and the colour profile of a PNG file are not read.

Pillow reads every format. Usual JPEG files are decoded by the same libjpeg-turbo directly (see `jpeg`), which yields
the same pixels without Pillow's copies: in 0.8 of the time at 500 x 375 pixels, a quarter at 4000 x 3000.
"""

import contextlib
import io
import os
import sys
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
from simclr.errors import SettingError, UnreadableImage

with contextlib.suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()

if "SIMCLR_MAX_PIXELS" in os.environ:  # a limit above Pillow's; the environment reaches worker processes
    if not os.environ["SIMCLR_MAX_PIXELS"].isdecimal():
        raise SettingError("SIMCLR_MAX_PIXELS", "a number of pixels", os.environ["SIMCLR_MAX_PIXELS"])
    Image.MAX_IMAGE_PIXELS = -(-int(os.environ["SIMCLR_MAX_PIXELS"]) // 2)  # Pillow refuses twice that
_ORIENTATION_TAG = 0x0112
_TRANSPOSED, _UPSIDE_DOWN, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


class DecodedRegion(NamedTuple):
    """Decoded pixels of an image or of a region of it, at full or reduced size."""

    pixels: UInt8[np.ndarray, "h w 3"]
    corner: tuple[int, int]
    """(y, x) of the first pixel in the image, in pixels of the reduced image"""
    whole: tuple[int, int]
    """(height, width) of the reduced image"""

    def map_box(self, box: Int[np.ndarray, " 4"], size: tuple[int, int]) -> Int[np.ndarray, " 4"]:
        """Return a box (y, x, height, width) of the image of `size` in pixels of the region; edges are rounded."""
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
    _pixels: UInt8[np.ndarray, "h w 3"] | None = None
    _jpeg: bytes | None = None
    _orientation: int = 1

    @staticmethod
    def of(pixels: UInt8[np.ndarray, "h w 3"], name: str = "") -> "LazyImage":
        return LazyImage(name, pixels.shape[:2], pixels)

    @staticmethod
    def open(file: bytes | str | Path, path: str | None = None) -> "LazyImage":
        """Open an image file, given by its content or its path; see `decode`."""
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
                with _quiet(), Image.open(io.BytesIO(content)) as image:  # Pillow finds it in EXIF and in XMP
                    orientation = _orientation(image)
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
            return DecodedRegion(_upright(pixels, self._orientation), corner, whole)
        pixels = jpeg.whole(self._jpeg, self._stored_size, reduction)
        if pixels is not None:
            return DecodedRegion(_upright(pixels, self._orientation), (0, 0), whole)
        with _named(self.name):
            pixels = _by_pillow(self._jpeg)  # which reads or rejects a file with a fault
        return DecodedRegion(pixels, (0, 0), pixels.shape[:2])


def decode(file: bytes | str | Path, path: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file, given by its content or its path, to uint8 (H, W, 3).

    Raises UnreadableImage, in which the image is called `path` (default: the path of the file). Images of more than
    about 179 million pixels are rejected, as by Pillow, or of more than the environment's SIMCLR_MAX_PIXELS.
    """
    return LazyImage.open(file, path).read().pixels


def file_form(file: bytes | Path) -> str:
    """Return format, colour mode and bits per channel of an image file, such as "JPEG RGB 8 bit"."""
    content = file if isinstance(file, bytes) else file.read_bytes()
    with _named("<bytes>" if isinstance(file, bytes) else str(file)), _opened(content) as image:
        bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
        if _deep_rawmodes(image):
            bits = 16
        return f"{image.format} {image.mode} {bits} bit"


def as_rgb(image: object, path: str) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image object to uint8 (H, W, 3).

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
    given = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
    allowed = "a PIL image, a uint8 array (H, W, 3) or (H, W), or a uint8 tensor (3, H, W)"
    raise UnreadableImage(path, f"{given} is not an image, which must be {allowed}")


def stretch(values: Shaped[np.ndarray, "h w ..."]) -> UInt8[np.ndarray, "h w ..."]:
    """Map values of any depth to uint8: the 0.1st to 99.9th percentile becomes 0..255, a constant becomes 0.

    Percentiles are used since one hot pixel of a sensor would leave the image black; if they coincide, the whole range.
    Values that are not finite count as the lowest value.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    numbers = values[finite].astype(np.float64)
    low, high = np.percentile(numbers, (0.1, 99.9))
    if low == high:
        low, high = numbers.min(), numbers.max()
    grey = np.where(finite, values, low).astype(np.float64) - low
    return np.rint(np.clip(grey / ((high - low) or 1.0), 0.0, 1.0) * 255.0).astype(np.uint8)


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """An image file, opened by Pillow; a PNG file without its text and colour profile.

    Pillow rejects PNG files with more than 1 MiB of either, which have no bearing on the pixels.
    """
    with _quiet(), Image.open(io.BytesIO(_without_text(content))) as image:
        yield image


def _without_text(content: bytes) -> bytes:
    """Return a file without the chunks zTXt, tEXt, iTXt and iCCP, except for XMP, if it is a PNG file that has them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept, at, dropped = [content[:8]], 8, False
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        kind, start = content[at + 4 : at + 8], content[at + 8 : at + 8 + 20]
        is_xmp = start == b"XML:com.adobe.xmp\0\0\0" and end - at < 1 << 20  # which may contain the orientation
        if kind in (b"zTXt", b"tEXt", b"iTXt", b"iCCP") and not is_xmp and end <= len(content):
            dropped = True
        else:
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, content[at:]]) if dropped else content


def _by_pillow(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    with _opened(content) as image:
        if rawmodes := _deep_rawmodes(image):
            return _deep_colour(content, rawmodes)
        return _rgb(image)


def _deep_rawmodes(image: Image.Image) -> tuple[str, str] | None:
    """Return Pillow's raw modes for the high and the low byte of an image with 16 bits per colour, None for others."""
    tile = image.tile[0] if getattr(image, "tile", None) else None
    rawmode = tile and (tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else None)
    if image.mode not in ("RGB", "RGBA") or not isinstance(rawmode, str) or ";16" not in rawmode:
        return None
    colours, _, order = rawmode.partition(";16")
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    # read with the other byte order, Pillow keeps the low byte in place of the high one
    return f"{colours};16{order}", f"{colours};16{'L' if order == 'B' else 'B'}"


def _deep_colour(content: bytes, rawmodes: tuple[str, str]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image with 16 bits per colour: both bytes by Pillow, which itself keeps the high one only."""
    halves = []
    for rawmode in rawmodes:
        with _opened(content) as image:
            image.tile = [
                tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))
                for tile in image.tile
            ]
            image.load()
            halves.append(np.asarray(image).astype(np.uint16))
            mode, orientation = image.mode, _orientation(image)
    values = (halves[0] << 8) | halves[1]
    pixels = stretch(values[..., :3])
    if mode == "RGBA":
        alpha = values[..., 3:].astype(np.float64) / 65535
        pixels = np.rint(pixels * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return _upright(pixels, orientation)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    image.load()
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _upright(np.repeat(stretch(np.asarray(image))[:, :, None], 3, axis=2), orientation)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return _upright(np.array(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def _upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turn a stored image upright, following EXIF 2.3, tag 0x0112; orientations other than 1 to 8 count as 1."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in _UPSIDE_DOWN:
        pixels = pixels[::-1]
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _box_upright(box: jpeg.Box, whole: tuple[int, int], orientation: int) -> jpeg.Box:
    """Return a box of the stored image in the upright image, whose (height, width) is `whole`."""
    y, x, height, width = (*box[1::-1], *box[:1:-1]) if orientation in _TRANSPOSED else box
    y = whole[0] - y - height if orientation in _UPSIDE_DOWN else y
    x = whole[1] - x - width if orientation in _MIRRORED else x
    return y, x, height, width


def _box_as_stored(box: jpeg.Box, whole: tuple[int, int], orientation: int) -> jpeg.Box:
    """Return a box of the upright image in the stored image."""
    y, x, height, width = box
    y = whole[0] - y - height if orientation in _UPSIDE_DOWN else y
    x = whole[1] - x - width if orientation in _MIRRORED else x
    return (x, y, width, height) if orientation in _TRANSPOSED else (y, x, height, width)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata do not make the pixels unreadable
        return 1


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise every exception inside as an UnreadableImage that names the image."""
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
    """Mute Pillow's warnings about odd metadata and large images.

    `warnings.catch_warnings` in several threads can leave the filters of one behind in another, so the first
    thread that enters mutes them and the last one that leaves restores them.
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
