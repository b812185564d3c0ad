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
    bad: dict[int, UnreadableImage] = {}
    first = next((image for i in range(len(source)) if (image := _read(source, i, bad)) is not None), None)
    if first is None or first.nbytes * len(source) > max_bytes:
        return None
    images = np.zeros((len(source), *first.shape), np.uint8)

    def fill(start: int) -> bool:
        for i in range(start, min(start + _BLOCK, len(source))):
            image = _read(source, i, bad)
            if image is not None and image.shape != first.shape:
                return False
            if image is not None:
                images[i] = image
        return True

    with ThreadPoolExecutor(cores()) as pool:
        pending = [pool.submit(fill, start) for start in range(0, len(source), _BLOCK)]
        for one in pending:
            if not one.result():
                pool.shutdown(cancel_futures=True)
                return None
    return Loaded(images, bad)


def _read(source: Source, i: int, bad: dict[int, UnreadableImage]) -> np.ndarray | None:
    try:
        return source.read(i)
    except UnreadableImage as error:
        bad[i] = error
        return None
