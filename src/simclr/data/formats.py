"""Image files of all formats, read by Pillow."""

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from simclr.errors import SettingError, UnreadableImage

with contextlib.suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()

if "SIMCLR_MAX_PIXELS" in os.environ:  # a limit above Pillow's; the environment reaches worker processes
    if not os.environ["SIMCLR_MAX_PIXELS"].isdecimal():
        raise SettingError("SIMCLR_MAX_PIXELS", "a number of pixels", os.environ["SIMCLR_MAX_PIXELS"])
    Image.MAX_IMAGE_PIXELS = -(-int(os.environ["SIMCLR_MAX_PIXELS"]) // 2)  # Pillow refuses twice that
_ORIENTATION_TAG = 0x0112
T = TypeVar("T")
TRANSPOSED, UPSIDE_DOWN, MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


def file_form(file: bytes | Path) -> str:
    """Return format, colour mode and bits per channel of an image file, such as "JPEG RGB 8 bit"."""

    def describe(image: Image.Image) -> str:
        is_deep = image.mode.startswith("I;16") or _deep_rawmodes(image)
        bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if is_deep else 8)
        return f"{image.format} {image.mode} {bits} bit"

    with named_errors("<bytes>" if isinstance(file, bytes) else str(file)):
        return with_pillow(file if isinstance(file, bytes) else file.read_bytes(), describe)


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


def with_pillow(content: bytes, function: Callable[[Image.Image], T]) -> T:
    """Open an image file with Pillow and return `function` of the image.

    Pillow rejects PNG files with more than 1 MiB of text or colour profile, which have no bearing on the pixels: they
    are opened again without them.
    """
    try:
        with muted(), Image.open(io.BytesIO(content)) as image:
            return function(image)
    except ValueError:
        stripped = _without_text(content)
        if stripped is content:
            raise
    with muted(), Image.open(io.BytesIO(stripped)) as image:
        return function(image)


def _without_text(content: bytes) -> bytes:
    """Return a file without the chunks zTXt, tEXt, iTXt and iCCP, if it is a PNG file that has them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    kept, at, is_dropped = [content[:8]], 8, False
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] in (b"zTXt", b"tEXt", b"iTXt", b"iCCP") and end <= len(content):
            is_dropped = True
        else:
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, content[at:]]) if is_dropped else content


def read_image(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to uint8 (H, W, 3)."""

    def decode(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        rawmodes = _deep_rawmodes(image)
        return _deep_colour(content, rawmodes) if rawmodes else to_rgb(image)

    return with_pillow(content, decode)


def _deep_rawmodes(image: Image.Image) -> tuple[str, str] | None:
    """Return Pillow's raw modes for the high and the low byte of an image with 16 bits per colour, None for others."""
    tile = image.tile[0] if getattr(image, "tile", None) else None
    rawmode = tile and (tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else None)
    if image.mode not in ("RGB", "RGBA") or not isinstance(rawmode, str) or ";16" not in rawmode:
        return None
    if "transparency" in image.info:  # one colour is transparent, which Pillow compares with the high bytes
        return None
    colours, _, order = rawmode.partition(";16")
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    # read with the other byte order, Pillow keeps the low byte in place of the high one
    return f"{colours};16{order}", f"{colours};16{'L' if order == 'B' else 'B'}"


def _deep_colour(content: bytes, rawmodes: tuple[str, str]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image with 16 bits per colour: both bytes by Pillow, which itself keeps the high one only."""

    def read_byte(rawmode: str, image: Image.Image) -> tuple[np.ndarray, int]:
        tiles = []
        for tile in image.tile:
            args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
            tiles.append(getattr(type(tile), "_make", tuple)((*tile[:3], args)))
        image.tile = tiles
        image.load()
        return np.asarray(image).astype(np.uint16), orientation_of(image)

    (high, orientation), (low, _) = (with_pillow(content, partial(read_byte, rawmode)) for rawmode in rawmodes)
    values = (high << 8) | low
    pixels = stretch(values[..., :3])
    if values.shape[2] == 4:
        alpha = values[..., 3:].astype(np.float64) / 65535
        pixels = np.rint(pixels * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return turn_upright(pixels, orientation)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image of any mode to upright uint8 (H, W, 3)."""
    image.load()
    orientation = orientation_of(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return turn_upright(np.repeat(stretch(np.asarray(image))[:, :, None], 3, axis=2), orientation)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return turn_upright(np.array(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def turn_upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turn a stored image upright, following EXIF 2.3, tag 0x0112; orientations other than 1 to 8 count as 1."""
    if orientation in TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in UPSIDE_DOWN:
        pixels = pixels[::-1]
    if orientation in MIRRORED:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata do not make the pixels unreadable
        return 1


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Raise every exception inside as an UnreadableImage that names the image."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image in a format that Pillow reads") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise UnreadableImage(name, reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Return the reason of an error in one line."""
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
def muted() -> Iterator[None]:
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
