"""Survey of images: size, variation, content and readability of some images of a source."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from simclr.data.decoding import file_form
from simclr.data.loading import try_read
from simclr.data.source import Source
from simclr.errors import DataError, UnreadableImage
from simclr.runs.environment import cores


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

    @property
    def side(self) -> int:
        """Shorter side, pixels."""
        return min(self.height, self.width)


def survey(
    source: Source, rows: Iterable[int], *, threads: int = -1, deviation: bool = False, form: bool = False
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
        varies = float(image.std((0, 1)).max()) / 255 if deviation else None
        return Appearance(row, source.path(row), image.shape[0], image.shape[1], digest.digest(), varies, described)

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
