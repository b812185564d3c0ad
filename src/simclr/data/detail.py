"""How much detail images have: what is lost when they are reduced."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

LARGEST = 512  # side to which larger images are reduced first, for speed


def contrast_lost(images: Iterable[np.ndarray], sizes: Sequence[int]) -> dict[int, float]:
    """Return the fraction of the variance over positions that images (H, W, C) lose when they are reduced to each size.

    The central square of an image, the mean over its channels, is reduced to `size` pixels and enlarged again; the loss
    is the mean square of the difference over the variance, 0 for images of that size and smaller ones. Returns the mean
    over the images that are not of one colour, and 0 if all are.
    """
    lost = np.array([row for image in images if (row := _lost(image, sizes)) is not None])
    return dict(zip(sizes, lost.mean(0).tolist() if len(lost) else [0.0] * len(sizes), strict=True))


def _lost(image: np.ndarray, sizes: Sequence[int]) -> list[float] | None:
    grey = torch.from_numpy(image.mean(2, dtype=np.float32))
    side = min(grey.shape)
    top, left = ((length - side) // 2 for length in grey.shape)
    square = grey[None, None, top : top + side, left : left + side]
    if side > LARGEST:
        square = _reduce(square, LARGEST)
    variance = square.var(correction=0)
    if not variance > 0:
        return None
    differences = (square - _enlarge(_reduce(square, size), square.shape[-1]) for size in sizes if size < side)
    lost = [float(difference.square().mean() / variance) for difference in differences]
    return lost + [0.0] * (len(sizes) - len(lost))


def _reduce(square: Tensor, size: int) -> Tensor:
    return interpolate(square, (size, size), mode="bilinear", antialias=True)


def _enlarge(square: Tensor, size: int) -> Tensor:
    return interpolate(square, (size, size), mode="bicubic", align_corners=False)
