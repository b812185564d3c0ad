"""CPU backend: arrays in and out of the compiled kernels, spread over threads."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from simclr.views import cpu_colour, cpu_geometry
from simclr.views.draw import Style, ViewParameters

CACHE = 256 * 1024  # bytes of planes that a thread processes together: about half of a core's second-level cache


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="views")


def spread(work: Callable[[slice], None], n: int) -> None:
    """Call `work` on slices that cover n images, over as many threads as torch uses."""
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        work(slice(0, n))
        return
    # a pool does not survive a fork, so each process has its own; several slices per thread balance the load
    edges = np.linspace(0, n, min(4 * threads, n) + 1).astype(int).tolist()
    slices = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    list(_pool(threads, os.getpid()).map(work, slices))


def crop(
    images: UInt8[np.ndarray, "b h w 3"],
    boxes: Int[np.ndarray, "b 4"],
    flips: Bool[np.ndarray, " b"],
    size: int,
    antialias: bool,
) -> UInt8[np.ndarray, "b s s 3"]:
    """Crop, resize, flip and round; in the calling thread, since there are many workers."""
    out = np.empty((len(images), size, size, 3), np.uint8)
    planes = _planes(len(images), size)
    boxes, flips = _owned(boxes, np.int64), _owned(flips, np.bool_)
    cpu_geometry.resample_views(_rows(images), boxes, flips, antialias, planes)
    cpu_geometry.store_bytes(planes, out.reshape(len(images), size, 3 * size))
    return out


def render(
    images: UInt8[np.ndarray, "b h w 3"] | Sequence[UInt8[np.ndarray, "_ _ 3"]],
    p: ViewParameters,
    style: Style,
    cropped: bool,
    out: Float[np.ndarray, "b s s 3"],
) -> None:
    """Write whole views to `out`, or, for crops (`cropped`), the colour operations alone."""
    same_size = isinstance(images, np.ndarray)
    if cropped:
        source = _owned(images, np.uint8)
    else:
        source = _rows(images) if same_size else [_rows(image[None]) for image in images]
    crops, flips = _owned(p.crop, np.int64), _owned(p.flip, np.bool_)
    jittered, order, factors = _owned(p.jitter, np.bool_), _owned(p.order, np.uint8), _owned(p.factors, np.float32)
    grey, blurred, sigma = _owned(p.grey, np.bool_), _owned(p.blur, np.bool_), _owned(p.sigma, np.float32)
    rows = (jittered, order, factors, grey, blurred, sigma)
    step = max(CACHE // (12 * style.size * style.size), 1)

    def work(part: slice) -> None:
        planes = _planes(min(step, part.stop - part.start), style.size)
        for start in range(part.start, part.stop, step):
            s = slice(start, min(start + step, part.stop))
            x = planes[: s.stop - s.start]
            if cropped:
                cpu_geometry.load_views(source[s], x)
            elif same_size:
                cpu_geometry.resample_views(source[s], crops[s], flips[s], style.torchvision, x)
            else:
                for i in range(s.start, s.stop):
                    k = slice(i, i + 1)
                    cpu_geometry.resample_views(source[i], crops[k], flips[k], style.torchvision, x[i - start :][:1])
            cpu_colour.colour_views(x, rows, tuple(style[1:]), start)
            cpu_geometry.store_views(x, out[s])

    spread(work, len(images))


_thread = threading.local()


def _planes(n: int, size: int) -> Float[np.ndarray, "n 3 s s"]:
    """Return working memory of this thread, reused by all calls: new memory costs as much as the work in it."""
    memory = getattr(_thread, "memory", None)
    if memory is None or len(memory) < n * 3 * size * size:
        memory = _thread.memory = np.empty(n * 3 * size * size, np.float32)
    return memory[: n * 3 * size * size].reshape(n, 3, size, size)


def _owned(array: np.ndarray, dtype: type) -> np.ndarray:
    """Return the array in the layout that the kernels are compiled for: numba would compile again for any other."""
    if array.dtype == dtype and array.flags.carray:  # np.require takes a hundred times as long to check that
        return array
    return np.require(array, dtype, ["C", "W"])


def _rows(images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w3"]:
    b, height, width, _ = images.shape
    return _owned(images, np.uint8).reshape(b, height, 3 * width)
