"""Views of whole batches without groups of images, in a form that torch.compile fuses into few kernels.

The operations are those of `torch_backend`, where each of them gathers its images and so computes none in vain. Here
each is computed for all images and kept where it is wanted: on a GPU, where starting a kernel takes longer than what
it computes for small views, the fused ones are several times faster.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from simclr.views.draw import Style, ViewParameters
from simclr.views.torch_backend import (
    as_fractions,
    blur,
    blur_matrix,
    contrast,
    crop_resize,
    greyscale,
    rotate_hue,
    saturate,
    to_device_async,
)

COLUMNS = [4, 1, 4, 1, 1, 1, 4]  # crop, flip, factors, grey, blur, sigma, order
NONE = 4  # in place of an operation in `order`


def compiled_views(
    images: Real[Tensor, "b h w c"], parameters: ViewParameters, style: Style, cropped: bool
) -> Float[Tensor, "b c s s"]:
    """Return views of images, or of their crops, by a function compiled for their number and size."""
    return _compiled()(images, to_device_async(as_rows(parameters), images.device), style, cropped)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(views_of, dynamic=False)


def as_rows(p: ViewParameters) -> Float[np.ndarray, "b columns"]:
    """Return the decisions as one float32 array, so that they are copied at once."""
    order = np.where(p.jitter[:, None], p.order, NONE)
    single = [array[:, None] for array in (p.flip, p.grey, p.blur, p.sigma)]
    columns = [p.crop, single[0], p.factors, *single[1:], order]
    return np.concatenate(columns, 1).astype(np.float32)


def views_of(
    images: Real[Tensor, "b h w c"], rows: Float[Tensor, "b columns"], style: Style, cropped: bool
) -> Float[Tensor, "b c s s"]:
    """Return views of images, or of their crops, by the decisions of `as_rows`."""
    crop, flip, factors, *others = rows.split(COLUMNS, 1)
    grey, blurred, sigma = (column[:, :, None, None] for column in others[:3])
    if cropped:
        x = as_fractions(images.permute(0, 3, 1, 2))
    else:
        x = crop_resize(images, crop.long(), flip[:, 0] > 0, style.size, antialias=style.torchvision)
    for operation in others[3][:, :, None, None, None].unbind(1):
        x = jittered(x, operation, factors[:, :, None, None, None], style)
    if x.shape[1] == 3:
        x = torch.where(grey > 0, greyscale(x), x)
    x = x.clamp(0, 1)
    if style.radius:
        matrix = blur_matrix(sigma.flatten(), style.size, style.radius, reflect=style.torchvision)
        x = torch.where(blurred > 0, blur(x, matrix).clamp(0, 1), x)
    return x


def jittered(
    x: Float[Tensor, "b c s s"],
    operation: Float[Tensor, "b 1 1 1"],
    factors: Float[Tensor, "b 4 1 1 1"],
    style: Style,
) -> Float[Tensor, "b c s s"]:
    """Apply to each image one operation of the jitter, or none, with a clip to [0, 1]."""
    has_colours = x.shape[1] == 3
    brightness, scale, saturation, turns = factors.unbind(1)
    candidates = [
        x + brightness if style.additive else x * brightness,
        contrast(x, scale, style.torchvision and has_colours),
    ]
    if has_colours:
        blended = saturation * x + (1 - saturation) * greyscale(x) if style.torchvision else saturate(x, saturation)
        candidates += [blended, rotate_hue(x, turns)]
    result = x
    for number, candidate in enumerate(candidates):
        result = torch.where(operation == number, candidate.clamp(0, 1), result)
    return result
