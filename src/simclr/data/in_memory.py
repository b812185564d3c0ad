"""Whole sources in memory, decoded by threads."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from simclr.data.source import Source
from simclr.errors import UnreadableImage
from simclr.runs.environment import cores

MAX_BYTES = 2 << 30  # maximum size of a decoded data set that is kept in memory by default
_BLOCK = 64  # images a thread decodes at a time
_SOME = 32  # images whose sizes are measured before all are decoded


class Loaded(NamedTuple):
    """All images of a source in memory."""

    images: Real[np.ndarray, "n h w c"]
    """decoded images, zeros for unreadable ones"""
    bad: dict[int, UnreadableImage]


def load_images(source: Source, max_bytes: int = MAX_BYTES) -> Loaded | None:
    """Decode a whole source with threads; return None if its images differ in size or need more than `max_bytes`.

    Images that are in memory already are returned unchanged, regardless of their size.
    """
    if source.images is not None:
        return Loaded(source.images, {})
    readable = (image for i in range(len(source)) if isinstance(image := try_read(source, i), np.ndarray))
    first = next(readable, None)
    if first is None or first.nbytes * len(source) > max_bytes:
        return None
    images = np.zeros((len(source), *first.shape), first.dtype)

    def fill(start: int) -> dict[int, UnreadableImage] | None:
        bad = {}
        for i in range(start, min(start + _BLOCK, len(source))):
            image = try_read(source, i)
            if isinstance(image, UnreadableImage):
                bad[i] = image
            elif image.shape == first.shape:
                images[i] = image
            else:
                return None
        return bad

    bad: dict[int, UnreadableImage] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for errors in pool.map(fill, range(0, len(source), _BLOCK)):
            if errors is None:
                pool.shutdown(cancel_futures=True)
                return None
            bad |= errors
    return Loaded(images, bad)


def decode_all(
    source: Source, max_bytes: float | int, announce: Callable[[float], None] | None = None
) -> list[np.ndarray | UnreadableImage] | None:
    """Decode a whole source with threads, whatever the sizes of its images; return None if they need more than
    `max_bytes`, by the mean of some of them or when it turns out. `announce` receives the expected time, s."""
    n, began = len(source), time.perf_counter()
    some = np.unique(np.linspace(0, n - 1, min(n, _SOME)).round().astype(int)).tolist()
    sizes = []
    for i in some:
        if isinstance(image := try_read(source, i), np.ndarray):
            sizes.append(image.nbytes)
        if sum(sizes) > max_bytes:
            return None
    if not sizes or float(np.mean(sizes)) * n > max_bytes:
        return None
    if announce is not None:
        announce((time.perf_counter() - began) / len(some) * n / cores())
    images: list[np.ndarray | UnreadableImage] = []
    blocks = [range(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
    with ThreadPoolExecutor(cores()) as pool:
        for block in pool.map(lambda rows: [try_read(source, i) for i in rows], blocks):
            images += block
            max_bytes -= sum(image.nbytes for image in block if isinstance(image, np.ndarray))
            if max_bytes < 0:
                pool.shutdown(cancel_futures=True)
                return None
    return images


def try_read(source: Source, i: int, *, stored: bool = False) -> np.ndarray | UnreadableImage:
    """Return image i, or its `stored` values, or the error if it is unreadable."""
    try:
        return source.values(i) if stored else source.read(i)
    except UnreadableImage as error:
        return UnreadableImage(error.path, error.reason)  # without a traceback, which would keep the file in memory


def first_errors(source: Source, *, stored: bool = False) -> list[UnreadableImage]:
    """Return the errors of the first images; none if one of them can be read."""
    images = [try_read(source, i, stored=stored) for i in range(min(len(source), 3))]
    errors = [image for image in images if isinstance(image, UnreadableImage)]
    return errors if len(errors) == len(images) else []
