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
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from simclr.errors import SettingError, UnreadableImage
from simclr.runs.reading import read_bytes

with contextlib.suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()

if "SIMCLR_MAX_PIXELS" in os.environ:  # a limit above Pillow's; the environment reaches worker processes
    if not os.environ["SIMCLR_MAX_PIXELS"].isdecimal():
        raise SettingError("SIMCLR_MAX_PIXELS", "a number of pixels", os.environ["SIMCLR_MAX_PIXELS"])
    Image.MAX_IMAGE_PIXELS = -(-int(os.environ["SIMCLR_MAX_PIXELS"]) // 2)  # Pillow refuses twice that
MAX_FILE_BYTES = 2 << 30  # of one image; uncompressed, the largest that is decoded has 1.4 GB
_ORIENTATION_TAG = 0x0112
T = TypeVar("T")
TRANSPOSED, UPSIDE_DOWN, MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)


def file_form(file: bytes | Path) -> str:
    """Return format, colour mode and bits per channel of an image file, such as "JPEG RGB 8 bit"."""

    def describe(image: Image.Image) -> str:
        is_deep = image.mode.startswith("I;16") or deep_rawmodes(image)
        bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if is_deep else 8)
        return f"{image.format} {image.mode} {bits} bit"

    with named_errors("<bytes>" if isinstance(file, bytes) else str(file)):
        return with_pillow(
            file if isinstance(file, bytes) else read_bytes(file, MAX_FILE_BYTES, UnreadableImage), describe
        )


def stretch(values: Shaped[np.ndarray, "h w ..."]) -> UInt8[np.ndarray, "h w ..."]:
    """Map values of any depth to uint8: the 0.1st to 99.9th percentile becomes 0..255, a constant becomes 0.

    Percentiles are used since one hot pixel of a sensor would leave the image black; if they coincide, the whole range.
    Values that are not finite count as the lowest value. Large images are computed in strips, since float64 would take
    eight bytes for each value.
    """
    out = np.zeros(values.shape, np.uint8)
    bounds = _bounds(values)
    if bounds is None:
        return out
    low, high = bounds
    for rows in _strips(values.shape):
        part = values[rows]
        grey = np.where(np.isfinite(part), part, low).astype(np.float64) - low
        out[rows] = np.rint(np.clip(grey / ((high - low) or 1.0), 0.0, 1.0) * 255.0)
    return out


def _bounds(values: Shaped[np.ndarray, "h w ..."]) -> tuple[np.float64, np.float64] | None:
    """Return the 0.1st and 99.9th percentile of the finite values, or their extremes if these are equal."""
    if values.dtype == np.uint16:  # counted, so that nothing is sorted
        counts = np.zeros(1 << 16, np.int64)
        for rows in _strips(values.shape):
            counts += np.bincount(values[rows].reshape(-1), minlength=1 << 16)
        total = np.cumsum(counts)
        n, ordered = int(total[-1]), None
    else:
        ordered = values[np.isfinite(values)]
        n = len(ordered)
    if not n:
        return None
    places = [(n - 1) * (percent / 100) for percent in (0.1, 99.9)]
    ranks = sorted({0, n - 1, *(min(int(place) + more, n - 1) for place in places for more in (0, 1))})
    if ordered is None:
        levels = np.searchsorted(total, ranks, side="right").astype(np.float64)
    else:
        ordered.partition(ranks)
        levels = ordered[ranks].astype(np.float64)
    level = dict(zip(ranks, levels, strict=True))
    low, high = (_between(level[int(p)], level[min(int(p) + 1, n - 1)], p - int(p)) for p in places)
    return (low, high) if low != high else (level[0], level[n - 1])


def _between(low: np.float64, high: np.float64, weight: float) -> np.float64:
    """Interpolate as numpy.percentile does, to the last bit."""
    return high - (high - low) * (1 - weight) if weight >= 0.5 else low + (high - low) * weight


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of rows of about a million values."""
    rows = max(1, (1 << 20) // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows)


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
        rawmodes = deep_rawmodes(image)
        check_pixels(image, rawmodes is not None)
        return _deep_colour(content, rawmodes) if rawmodes else to_rgb(image)

    return with_pillow(content, decode)


def deep_rawmodes(image: Image.Image) -> tuple[str, str] | None:
    """Return Pillow's raw modes for the high and the low byte of an image with 16 bits per colour, None for others."""
    tile = image.tile[0] if getattr(image, "tile", None) else None  # type: ignore[attr-defined]
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


def deep_values(content: bytes, rawmodes: tuple[str, str]) -> tuple[UInt16[np.ndarray, "h w c"], int]:
    """Decode an image with 16 bits per colour, both bytes by Pillow, which itself keeps the high one only; return its
    values as stored and its orientation."""

    def read_byte(rawmode: str, image: Image.Image) -> tuple[np.ndarray, int]:
        tiles = []
        for tile in image.tile:  # type: ignore[attr-defined]
            args = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
            tiles.append(getattr(type(tile), "_make", tuple)((*tile[:3], args)))
        image.tile = tiles  # type: ignore[attr-defined]
        image.load()
        return np.asarray(image).astype(np.uint16), orientation_of(image)

    values, orientation = with_pillow(content, partial(read_byte, rawmodes[0]))
    values <<= 8
    values |= with_pillow(content, partial(read_byte, rawmodes[1]))[0]
    return values, orientation


def _deep_colour(content: bytes, rawmodes: tuple[str, str]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image with 16 bits per colour to bytes."""
    values, orientation = deep_values(content, rawmodes)
    pixels = stretch(values[..., :3])
    for rows in _strips(values.shape) if values.shape[2] == 4 else ():
        alpha = values[rows, :, 3:].astype(np.float64) / 65535
        pixels[rows] = np.rint(pixels[rows] * alpha + 255 * (1 - alpha))
    return turn_upright(pixels, orientation)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image of any mode to upright uint8 (H, W, 3)."""
    check_pixels(image, image.mode in ("I", "F"))
    image.load()
    orientation = orientation_of(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return turn_upright(np.repeat(stretch(np.asarray(image))[:, :, None], 3, axis=2), orientation)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        return turn_upright(_on_white(image), orientation)
    return turn_upright(np.array(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def _on_white(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Composite an image on white, in strips: whole copies as RGBA would take 16 bytes for each pixel."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for rows in _strips(pixels.shape):
        part = image.crop((0, rows.start, width, min(rows.stop, height))).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        pixels[rows] = np.array(Image.alpha_composite(white, part).convert("RGB"))
    return pixels


def check_pixels(image: Image.Image, is_deep: bool) -> None:
    """Raise the error of an image that is too large, before its pixels take memory; Pillow has checked others."""
    if is_deep and Image.MAX_IMAGE_PIXELS and image.size[0] * image.size[1] > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def turn_upright(pixels: Shaped[np.ndarray, "h w c"], orientation: int) -> Shaped[np.ndarray, "_ _ c"]:
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
    except UnreadableImage:
        raise
    except MemoryError:
        raise MemoryError(f"{name}: there is not enough memory to decode the image") from None
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image in a format that Pillow reads") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise UnreadableImage(name, reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Return the reason of an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        limit = f"more than {most:,} pixels, or {most // 2:,} of 16 bits a colour or of 32 bits"
        return f"{limit}; set SIMCLR_MAX_PIXELS in the environment to allow more"
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
                warnings.filters.extend(_filters)  # type: ignore[attr-defined]
