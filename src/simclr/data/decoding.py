"""From an image file, or an image object, to one uint8 array (H, W, 3).

What is decided here, for every format alike:

- the EXIF orientation is applied;
- the first frame of an animation is taken;
- transparency is composited on white;
- greyscale is repeated over the three channels;
- 16- and 32-bit grey values are stretched from the image's own 0.1st to 99.9th percentile over 0..255, since
  Pillow's own conversion clips every value above 255 to white;
- a truncated file is an error: Pillow can fill the missing part with grey, and a network would learn that.

Pillow reads every format. Usual JPEG files go to the same libjpeg-turbo directly, which gives the very same pixels
without Pillow's copies: in 0.8 of the time at 500 x 375 pixels, a quarter at 4000 x 3000.
"""

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

if "SIMCLR_MAX_PIXELS" in os.environ:  # of an image, above Pillow's limit; the environment reaches worker processes
    if not os.environ["SIMCLR_MAX_PIXELS"].isdecimal():
        raise ValueError(f"SIMCLR_MAX_PIXELS is {os.environ['SIMCLR_MAX_PIXELS']!r}; it must be a number of pixels")
    Image.MAX_IMAGE_PIXELS = -(-int(os.environ["SIMCLR_MAX_PIXELS"]) // 2)  # Pillow refuses twice that

_ORIENTATION_TAG = 0x0112
Shrink = Callable[[tuple[int, int]], int]
"""(height, width) of an image -> the part of its side at which it may be decoded: 1, 2 (a half), 4 or 8"""


class UnreadableImage(Exception):
    """An image that cannot be decoded; `path` names it and `reason` says why, in one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(file: bytes | str | Path, path: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in `file` (its bytes or where it lies) -> uint8 (H, W, 3).

    Raises UnreadableImage, which calls the image `path` (default: where it lies). Pictures of more than
    about 179 million pixels are refused, as Pillow does, or of more than the environment's SIMCLR_MAX_PIXELS.
    """
    return decode_reduced(file, path, lambda size: 1)[0]


def decode_reduced(
    file: bytes | str | Path, path: str | None, shrink: Shrink
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """As `decode`, but a JPEG file at the part of its size that `shrink` allows -> pixels, whole (height, width).

    libjpeg computes a reduced image from the low frequencies alone, so that each pixel is about the mean of those it
    stands for, and ceil(side / part) of them are a side.
    """
    name = path or ("<bytes>" if isinstance(file, bytes) else str(file))
    try:
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        if not content:
            raise UnreadableImage(name, "empty file")
        found = _usual_jpeg(content, shrink)
        if found is not None:
            return found
        with _quiet(), Image.open(io.BytesIO(content)) as picture:
            pixels = _rgb(picture)
            return pixels, pixels.shape[:2]
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image in a format that Pillow reads") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise UnreadableImage(name, _reason(error)) from error


def file_form(path: Path) -> str:
    """Format, colour mode and bits a channel of an image file as it is stored, such as "JPEG RGB 8 bit".

    Pillow gives the 16-bit channels of a colour image as 8 bits, and says so here.
    """
    try:
        with _quiet(), Image.open(path) as picture:
            bits = {"1": 1, "I": 32, "F": 32}.get(picture.mode, 16 if picture.mode.startswith("I;16") else 8)
            return f"{picture.format} {picture.mode} {bits} bit"
    except Exception as error:
        raise UnreadableImage(str(path), _reason(error)) from error


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


def _usual_jpeg(content: bytes, shrink: Shrink) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]] | None:
    """A colour or grey JPEG without fault; None for all else, which Pillow reads or refuses."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
        return None
    orientation = 1
    if b"Exif" in content or b":Orientation" in content:  # in EXIF or XMP; Pillow knows where
        with _quiet(), Image.open(io.BytesIO(content)) as picture:
            orientation = _orientation(picture)
    size = (width, height) if orientation >= 5 else (height, width)
    part = shrink(size)
    try:
        pixels = simplejpeg.decode_jpeg(content, min_height=-(-height // part), min_width=-(-width // part))
    except ValueError:
        return None
    return _upright(pixels, orientation), size


def _upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image as it is stored -> as it is meant, after EXIF 2.3, tag 0x0112; other orientations than 1 to 8 are 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata do not make the pixels unreadable
        return 1


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
