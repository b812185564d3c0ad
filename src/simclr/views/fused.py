"""The CPU backend: arrays in and out of the compiled kernels, spread over threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8

from simclr.views import kernels
from simclr.views.draw import ViewParameters


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="views")


def spread(work: Callable[[slice], None], n: int) -> None:
    """Call `work` on slices that cover n images, over as many threads as torch uses."""
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        work(slice(0, n))
        return
    # a pool does not survive a fork, so each process has its own; several slices a thread even out the load
    edges = np.linspace(0, n, min(4 * threads, n) + 1).astype(int)
    slices = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    list(_pool(threads, os.getpid()).map(work, slices))


def crop(
    images: UInt8[np.ndarray, "b h w 3"], p: ViewParameters, size: int, antialias: bool
) -> UInt8[np.ndarray, "b s s 3"]:
    """Crop, resize, flip and round; in the calling thread, since workers are many."""
    out = np.empty((len(images), size, size, 3), np.uint8)
    kernels.crop_views(_rows(images), p.crop, p.flip, antialias, out)
    return out


def render(
    images: UInt8[np.ndarray, "b h w 3"], p: ViewParameters, size: int, cropped: bool,
    style: tuple[bool, bool, bool, int],
) -> Float[np.ndarray, "b s s 3"]:  # fmt: skip
    """Whole views, or only their colours if `cropped`; style: antialias, torchvision, additive, blur radius."""
    out = np.empty((len(images), size, size, 3), np.float32)
    rows = _rows(images)

    def work(part: slice) -> None:
        kernels.render_views(
            rows[part], cropped, p.crop[part], p.flip[part], p.jitter[part], p.order[part],
            p.factors[part], p.grey[part], p.blur[part], p.sigma[part], style, out[part],
        )  # fmt: skip

    spread(work, len(images))
    return out


def _rows(images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w3"]:
    b, height, width, _ = images.shape
    return np.ascontiguousarray(images).reshape(b, height, 3 * width)
