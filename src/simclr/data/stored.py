"""Images with the channels and levels that are stored, and their scaling to [0, 1].

`simclr.data.decoding` makes 8-bit RGB of every image. Here nothing is lost: greyscale stays one channel, the fourth
band of a TIFF file is a band, and 16-bit and float values keep their levels.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Real
from PIL import Image

from simclr.data.formats import (
    MAX_FILE_BYTES,
    check_pixels,
    deep_rawmodes,
    deep_values,
    muted,
    named_errors,
    orientation_of,
    turn_upright,
    with_pillow,
)
from simclr.errors import UnreadableImage
from simclr.runs.reading import read_bytes

KEPT_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F")  # of Pillow, next to those of 16 bits
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXTRA = "reading it needs {0}: pip install 'simclr-toolkit[bands]'"
LOWEST, HIGHEST = 0.1, 99.9  # percentiles of a channel that become 0 and 1


@dataclass(frozen=True)
class Scaling:
    """Values of each channel that become 0 and 1; values beyond them are clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of_bytes(cls, channels: int) -> "Scaling":
        """Return the scaling of 8-bit images, which then stay bytes."""
        return cls((0.0,) * channels, (255.0,) * channels)

    @classmethod
    def of_values(cls, values: Float[np.ndarray, "n c"]) -> "Scaling":
        """Return the scaling from the 0.1st to the 99.9th percentile of each channel, or between its extremes if these
        are equal; values that are not finite are left out."""
        bounds = []
        for channel in values.T:
            finite = channel[np.isfinite(channel)]
            low, high = np.percentile(finite, (LOWEST, HIGHEST)) if len(finite) else (0.0, 1.0)
            if low == high:
                low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
            bounds.append((float(low), float(high) if high > low else float(low) + 1))
        low, high = zip(*bounds, strict=True)
        return cls(low, high)

    @property
    def channels(self) -> int:
        return len(self.low)

    @property
    def keeps_bytes(self) -> bool:
        """Whether images are bytes, which the tensor operations divide by 255."""
        return self == self.of_bytes(self.channels)

    def check(self, values: Real[np.ndarray, "h w c"], name: str) -> None:
        """Raise UnreadableImage unless an image has these channels, and bytes among bytes."""
        if values.shape[2] != self.channels:
            raise UnreadableImage(name, f"it has {values.shape[2]} channels, not {self.channels}")
        if self.keeps_bytes and values.dtype != np.uint8:
            raise UnreadableImage(name, f"its values are {values.dtype}, those of the other images 8-bit")

    def apply(self, values: Real[np.ndarray, "*n h w c"]) -> Real[np.ndarray, "*n h w c"]:
        """Return values in [0, 1] as float32, or bytes as they are."""
        if self.keeps_bytes:
            return values
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        scaled = values.astype(np.float32)
        np.nan_to_num(scaled, copy=False, nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
        scaled -= low
        scaled /= high - low
        return np.clip(scaled, 0, 1, out=scaled)


def read_stored(file: bytes | str | Path, path: str | None = None) -> Real[np.ndarray, "h w c"]:
    """Return the values of an image file, given by its content or its path, with all its channels, upright.

    Palettes become RGB. Raises UnreadableImage, in which the image is called `path`.
    """
    with named_errors(path or ("<bytes>" if isinstance(file, bytes) else str(file))):
        content = file if isinstance(file, bytes) else read_bytes(file, MAX_FILE_BYTES, UnreadableImage)
        if is_dicom(content):
            return read_dicom(content)
        if content.startswith(TIFF_SIGNATURES):
            return _read_tiff(content)
        return with_pillow(content, lambda image: _values(image, content))


def as_values(image: object, name: str) -> Real[np.ndarray, "h w c"]:
    """Return an image object's values: a PIL image, an array (H, W, C) or (H, W), or a tensor (C, H, W)."""
    if isinstance(image, Image.Image):
        with named_errors(name), muted():
            return _values(image, None)
    if isinstance(image, torch.Tensor) and image.ndim == 3:
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray) and image.dtype.kind in "uif" and image.ndim in (2, 3) and image.size:
        return image.reshape(*image.shape[:2], -1)
    given = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
    allowed = "a PIL image, an array of numbers (H, W, C) or (H, W), or a tensor (C, H, W)"
    raise UnreadableImage(name, f"{given} is not an image, which must be {allowed}")


def _values(image: Image.Image, content: bytes | None) -> Real[np.ndarray, "h w c"]:
    rawmodes = deep_rawmodes(image) if content is not None else None
    check_pixels(image, rawmodes is not None or image.mode in ("I", "F"))
    if rawmodes:
        values, orientation = deep_values(content, rawmodes)
    else:
        image.load()
        orientation = orientation_of(image)
        if image.mode not in KEPT_MODES and not image.mode.startswith("I;16"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        values = np.array(image)
    return turn_upright(values.reshape(*values.shape[:2], -1), orientation)


def _read_tiff(content: bytes) -> Real[np.ndarray, "h w c"]:
    """Read the first image of a TIFF file; bands may be samples of pixels, planes, or pages."""
    try:
        import tifffile  # the extra `bands`; Pillow reads at most four bands, of 8 bits
    except ImportError:
        raise ValueError(EXTRA.format("tifffile")) from None
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        _check_size(series.shape)
        orientation = int(series.keyframe.tags.valueof(274, default=1))
        sides = [(axis, side) for axis, side in zip(series.axes, series.shape, strict=True) if side > 1 or axis in "YX"]
        axes = "".join(axis for axis, _ in sides)
        if axes.count("Y") != 1 or axes.count("X") != 1 or len(axes) > 3:
            raise ValueError(f"it has the axes {series.axes} {series.shape}; rows, columns and bands are read")
        values = series.asarray().reshape([side for _, side in sides])
    values = np.moveaxis(values, [axes.index("Y"), axes.index("X")], [0, 1])
    return turn_upright(values.reshape(*values.shape[:2], -1), orientation)


def is_dicom(content: bytes) -> bool:
    """Return whether the content of a file is DICOM."""
    return content[128:132] == b"DICM"


def read_dicom(content: bytes) -> Real[np.ndarray, "h w c"]:
    """Read the values of a DICOM image after its rescale slope and intercept, bright for high values."""
    try:
        import pydicom  # the extra `bands`
        from pydicom.pixels import apply_rescale
    except ImportError:
        raise ValueError(EXTRA.format("pydicom")) from None
    data = pydicom.dcmread(io.BytesIO(content))
    frames = int(data.get("NumberOfFrames", None) or 1)
    if frames != 1:
        raise ValueError(f"it has {frames} frames; one image per file is read")
    _check_size((data.Rows, data.Columns, data.SamplesPerPixel))
    values = apply_rescale(data.pixel_array, data)
    if data.PhotometricInterpretation == "MONOCHROME1":
        values = -values.astype(np.float32)
    return values.reshape(data.Rows, data.Columns, -1)


def _check_size(shape: tuple[int, ...]) -> None:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    if np.prod(shape, dtype=np.float64) > limit:
        raise Image.DecompressionBombError
