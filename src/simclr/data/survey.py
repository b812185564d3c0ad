"""Survey of images: size, variation, content, levels and readability of some images of a source."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from simclr.data.decoding import file_form
from simclr.data.in_memory import first_errors, try_read
from simclr.data.miniature import miniature
from simclr.data.source import Arrays, Objects, Source
from simclr.data.splits import sample_rows
from simclr.data.stored import Scaling
from simclr.errors import DataError, UnreadableImage
from simclr.runs.environment import cores

SAMPLED, SAMPLED_PIXELS = 256, 10_000  # images, and pixels of each, that a scaling is estimated from


class Appearance(NamedTuple):
    """Statistics of one readable image."""

    row: int
    path: str
    height: int
    width: int
    digest: bytes
    """hash of size and pixels"""
    deviation: float | None
    """standard deviation of the channel that varies most, in [0, 1]; None unless asked for"""
    form: str | None
    """format of the file, such as "JPEG RGB 8 bit"; None unless asked for"""
    miniature: Float32[np.ndarray, "side side c"] | None
    """see `simclr.data.miniature`; None unless asked for"""

    @property
    def side(self) -> int:
        """Shorter side, pixels."""
        return min(self.height, self.width)


def survey(
    source: Source,
    rows: Iterable[int],
    *,
    threads: int = -1,
    deviation: bool = False,
    form: bool = False,
    small: bool = False,
) -> tuple[list[Appearance], list[UnreadableImage]]:
    """Return statistics of the readable images among `rows`, and the errors of the others, both in order."""

    def look(row: int) -> Appearance | UnreadableImage:
        try:
            image = source.read(row)
            stored = source.stored(row) if form else None
            described = ("uint8 RGB 8 bit" if stored is None else file_form(stored)) if form else None
        except UnreadableImage as error:
            return error
        digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image))
        full = 255 if image.dtype == np.uint8 else 1
        varies = float(image.std((0, 1)).max()) / full if deviation else None
        shown = miniature(image) if small else None
        size = image.shape[0], image.shape[1]
        return Appearance(row, source.path(row), *size, digest.digest(), varies, described, shown)

    with ThreadPoolExecutor(cores() if threads < 0 else threads) as pool:
        results = list(pool.map(look, map(int, rows)))
    return (
        [result for result in results if isinstance(result, Appearance)],
        [result for result in results if isinstance(result, UnreadableImage)],
    )


def spread_images(
    source: Source, count: int
) -> tuple[list[int], list[UInt8[np.ndarray, "_ _ 3"]], list[UnreadableImage]]:
    """Return rows and pixels of up to `count` readable images, evenly spaced over a source, and the errors of those
    that were skipped: an unreadable image is replaced by the next readable one."""
    rows, images, errors = [], [], []
    starts = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist()
    for start, end in zip(starts, [*starts[1:], len(source)], strict=True):
        for row in range(start, end):
            image = try_read(source, row)
            if isinstance(image, UnreadableImage):
                errors.append(image)
                continue
            rows.append(row)
            images.append(image)
            break
    if not images:
        raise DataError(source.name, "no image can be read", f"The first: {errors[0]}")
    return rows, images, errors


def estimate_scaling(source: Source, channels: int) -> Scaling:
    """Return the scaling of a source: that of bytes if a sample of its images is of 8 bits, else percentiles of each
    channel over the sample, which is chosen by a hash of the names. Raises DataError for images of other channels."""
    parts, are_bytes = [], True
    for i in sample_rows(source, SAMPLED).tolist():
        values = try_read(source, i, stored=True)
        if isinstance(values, UnreadableImage):
            continue
        if values.shape[2] != channels:
            problem = f"{source.path(i)} has {values.shape[2]} channels, not {channels}"
            raise DataError(source.name, problem, "Set --channels to the number of the images")
        are_bytes &= values.dtype == np.uint8
        pixels = values.reshape(-1, channels)
        parts.append(pixels[:: -(-len(pixels) // SAMPLED_PIXELS)].astype(np.float64))
    if not parts:
        raise DataError(source.name, f"no image can be read: {first_errors(source, stored=True)[0]}")
    return Scaling.of_bytes(channels) if are_bytes else Scaling.of_values(np.concatenate(parts))


def scale_source(source: Source, low: Sequence[float], high: Sequence[float]) -> Source:
    """Return a source whose images are scaled from these levels of each channel, none for 8-bit RGB images. Raises
    DataError if its first images have other channels."""
    scaling = Scaling(tuple(low), tuple(high)) if low else None
    scaled = source if source.scaling == scaling else replace(source, scaling=scaling)
    is_checked = scaling is not None or isinstance(source, Arrays | Objects)  # 8-bit RGB is made of any file
    if is_checked and (errors := first_errors(scaled)):
        raise DataError(source.name, str(errors[0]), "The images must be as those that the encoder is trained on")
    return scaled
