"""All images of a source at once, for sources that fit in memory."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from .decoding import UnreadableImage
from .sources import Source

MAX_BYTES = 2 << 30  # largest size of a decoded data set that is kept in memory of its own accord
_BLOCK = 64  # images a thread decodes at a time


class Loaded(NamedTuple):
    images: UInt8[np.ndarray, "n h w 3"]
    """decoded images, zeros where one is unreadable"""
    bad: dict[int, UnreadableImage]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_images(source: Source, max_bytes: int = MAX_BYTES) -> Loaded | None:
    """Decode a whole source, by threads; None if its images differ in size or take more than `max_bytes`.

    Images that are in memory already are taken as they are, whatever they take.
    """
    if source.images is not None:
        return Loaded(source.images, {})
    readable = (image for i in range(len(source)) if isinstance(image := attempt(source, i), np.ndarray))
    first = next(readable, None)
    if first is None or first.nbytes * len(source) > max_bytes:
        return None
    images = np.zeros((len(source), *first.shape), np.uint8)

    def fill(start: int) -> dict[int, UnreadableImage] | None:
        bad = {}
        for i in range(start, min(start + _BLOCK, len(source))):
            image = attempt(source, i)
            if isinstance(image, UnreadableImage):
                bad[i] = image
            elif image.shape == first.shape:
                images[i] = image
            else:
                return None
        return bad

    bad: dict[int, UnreadableImage] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for found in pool.map(fill, range(0, len(source), _BLOCK)):
            if found is None:
                pool.shutdown(cancel_futures=True)
                return None
            bad |= found
    return Loaded(images, bad)


def attempt(source: Source, i: int) -> np.ndarray | UnreadableImage:
    """Image i, or why it cannot be read."""
    try:
        return source.read(i)
    except UnreadableImage as error:
        return error
