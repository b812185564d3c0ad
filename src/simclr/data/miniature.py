"""Miniatures of images, by which copies are recognised that were resized, compressed or mirrored."""

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch.nn.functional import interpolate

SIDE = 12  # pixels
LEAST = 1 / 255  # standard deviation, as a fraction of the range of values, below which an image shows nothing


def miniature(image: Shaped[np.ndarray, "h w c"]) -> Float32[np.ndarray, "side side c"]:
    """Return an image as SIDE × SIDE pixels without its mean and of norm 1; zeros for an image of one colour."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    if image.dtype == np.uint8:
        pixels = pixels / 255
    small = interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    small = small - small.mean()
    deviation = small.square().mean().sqrt()
    return (small / small.norm() if deviation > LEAST else torch.zeros_like(small)).contiguous().numpy()
