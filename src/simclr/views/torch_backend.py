"""Views as batched tensor operations with one set of parameters per image, on any device.

This is the definition that the CPU kernels are tested against, and the backend of every other device. No function waits
for a value from the device, or loops over images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from simclr.views.draw import Style, ViewParameters

LUMA = (0.2989, 0.587, 0.114)  # red, green, blue; both TensorFlow's and torchvision's grey
TINY = 1e-20


@dataclass(frozen=True)
class Decisions:
    """`ViewParameters` as tensors on a device."""

    crop: Int[Tensor, "b 4"]
    flip: Bool[Tensor, " b"]
    factors: Float[Tensor, "b 4"]
    grey: Bool[Tensor, " b"]
    sigma: Float[Tensor, " b"]
    blurred: Int[Tensor, " _"]
    """images that are blurred"""
    turns: list[list[Int[Tensor, " _"]]]
    """turns[j][k]: images whose j-th operation of the jitter is k"""

    @classmethod
    def of(cls, p: ViewParameters, device: torch.device | str) -> "Decisions":
        """Copy decisions to a device, in two copies; the images that share an operation are determined on the host."""
        columns = [p.crop, p.flip[:, None], p.factors, p.grey[:, None], p.sigma[:, None]]
        groups = [np.flatnonzero(p.jitter & (p.order[:, j] == k)) for j in range(4) for k in range(4)]
        groups.append(np.flatnonzero(p.blur))
        rows = to_device_async(np.concatenate(columns, 1).astype(np.float32), device)
        crop, flip, factors, grey, sigma = rows.split([4, 1, 4, 1, 1], 1)
        *turns, blurred = to_device_async(np.concatenate(groups), device).split([len(group) for group in groups])
        return cls(
            crop=crop.long(),
            flip=flip[:, 0] > 0,
            factors=factors,
            grey=grey[:, 0] > 0,
            sigma=sigma[:, 0],
            blurred=blurred,
            turns=[turns[4 * j : 4 * j + 4] for j in range(4)],
        )


def to_device_async(array: np.ndarray, device: torch.device | str) -> Tensor:
    """Copy an array to a device without waiting for its current work."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def resampling(
    start: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    flip: Bool[Tensor, " b"] | None,
    source: int,
    size: int,
    antialias: bool,
) -> Float[Tensor, "b s h"]:
    """Return for each image the matrix that crops `length` of `source` pixels at `start` and resizes them to `size`.

    Keys' bicubic (a = -0.5) at half-pixel centres, its offsets quantised to 1/1024 and its taps outside the
    crop dropped, as TensorFlow 2; or, antialiased, the bilinear filter of torchvision.
    """
    target = torch.arange(size, device=start.device, dtype=torch.float32)
    if flip is not None:
        target = torch.where(flip[:, None], size - 1 - target, target)
    scale = (length.float() / size)[:, None]
    pixel = (torch.arange(source, device=start.device) - start[:, None])[:, None]
    inside = (pixel >= 0) & (pixel < length[:, None, None])
    if antialias:
        support = scale.clamp(min=1.0)
        centre = (target + 0.5) * scale
        distance = (pixel - centre[..., None] + 0.5).abs() / support[..., None]
        weight = (1 - distance).clamp(min=0)
    else:
        position = (target + 0.5) * scale - 0.5
        base = position.floor()
        offset = ((position - base) * 1024).round() / 1024
        distance = (pixel - base[..., None] - offset[..., None]).abs()
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weight = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    weight = torch.where(inside, weight, 0.0)
    return weight / weight.sum(-1, keepdim=True)


def as_fractions(x: Real[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return bytes as values in [0, 1], and other values as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def crop_resize(
    images: Real[Tensor, "b h w c"],
    crop: Int[Tensor, "b 4"],
    flip: Bool[Tensor, " b"],
    size: int,
    antialias: bool,
) -> Float[Tensor, "b c s s"]:
    """Crop, resize and flip by two batched matrix products; values beyond [0, 1] are kept."""
    b, height, width, channels = images.shape
    y, x, h, w = crop.unbind(1)
    rows = resampling(y, h, None, height, size, antialias)
    columns = resampling(x, w, flip, width, size, antialias)
    pixels = as_fractions(images.reshape(b, height, width * channels))
    tall = torch.bmm(rows, pixels).view(b, size, width, channels).permute(0, 3, 1, 2)
    views = torch.bmm(tall.reshape(b, channels * size, width), columns.transpose(1, 2))
    return views.view(b, channels, size, size)


def greyscale(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the luma."""
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def saturate(x: Float[Tensor, "b 3 h w"], factor: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Scale the S of HSV and clip it to [0, 1], V and H kept."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    return value - torch.minimum(factor, value / chroma.clamp(min=TINY)).clamp(min=0) * (value - x)


def rotate_hue(x: Float[Tensor, "b 3 h w"], turns: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Rotate the hue, keeping the maximum and the minimum channel of each pixel."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    divisor = chroma.clamp(min=TINY)
    at_blue, at_green = 4 + (red - green) / divisor, 2 + (blue - red) / divisor
    sextant = torch.where(value == red, (green - blue) / divisor, torch.where(value == blue, at_blue, at_green))
    # made on the device, since a copy from the host would wait
    peaks = 5 - 2 * torch.arange(3, device=x.device).view(1, 3, 1, 1)
    k = (sextant + 6 * turns + peaks).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def contrast(
    x: Float[Tensor, "b c h w"], factor: Float[Tensor, "b 1 1 1"], grey_pivot: bool
) -> Float[Tensor, "b c h w"]:
    """Scale about the mean of each channel, or of the grey image."""
    mean = (greyscale(x) if grey_pivot else x).mean((2, 3), keepdim=True)
    return x * factor + mean * (1 - factor)


def jitter(
    x: Float[Tensor, "b c h w"],
    turns: list[list[Int[Tensor, " _"]]],
    factors: Float[Tensor, "b 4"],
    additive: bool,
    torchvision: bool,
) -> None:
    """Apply brightness, contrast, saturation and hue in each image's order, each with a clip to [0, 1]; in place.

    In each of four rounds an operation gathers the images whose turn it is, so no image is computed in vain. Images of
    other than three channels have no saturation and no hue, and their contrast is about the mean of each channel.
    """
    has_colours = x.shape[1] == 3
    for turn in turns:
        for operation, images in enumerate(turn if has_colours else turn[:2]):
            if not len(images):
                continue
            part, factor = x[images], factors[images, operation, None, None, None]
            if operation == 0:
                part = part + factor if additive else part * factor
            elif operation == 1:
                part = contrast(part, factor, torchvision and has_colours)
            elif operation == 3:
                part = rotate_hue(part, factor)
            elif torchvision:
                part = factor * part + (1 - factor) * greyscale(part)
            else:
                part = saturate(part, factor)
            x.index_copy_(0, images, part.clamp_(0, 1))


def blur_matrix(sigma: Float[Tensor, " b"], size: int, radius: int, reflect: bool) -> Float[Tensor, "b s s"]:
    """Return for each image the matrix of a Gaussian of 2 radius + 1 taps."""
    i = torch.arange(size, device=sigma.device, dtype=torch.float32)
    taps = torch.arange(-radius, radius + 1, device=sigma.device) / sigma[:, None]
    total = torch.exp(-0.5 * taps**2).sum(1)[:, None, None]

    def weight(distance: Tensor) -> Tensor:
        gaussian = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2) / total
        return torch.where(distance.abs() <= radius, gaussian, 0.0)

    target, source = i[:, None], i
    matrix = weight(source - target)
    if reflect:  # a mirrored pixel adds the weight of its image beyond the edge; the edge itself has no image
        matrix = matrix + torch.where(source > 0, weight(source + target), 0.0)
        beyond = 2 * (size - 1) - source - target
        matrix = matrix + torch.where(source < size - 1, weight(beyond), 0.0)
    return matrix


def blur(x: Float[Tensor, "b c s s"], matrix: Float[Tensor, "b s s"]) -> Float[Tensor, "b c s s"]:
    """Apply a matrix along both axes."""
    b, channels, size, _ = x.shape
    along_x = torch.bmm(x.reshape(b, channels * size, size), matrix.transpose(1, 2)).view(b, channels, size, size)
    return torch.matmul(matrix[:, None], along_x)


# The tensor functions of the table of operations: (images, decisions, style) -> images


def apply_jitter(x: Float[Tensor, "b c s s"], p: Decisions, style: Style) -> Float[Tensor, "b c s s"]:
    """Jitter colours in place."""
    jitter(x, p.turns, p.factors, style.additive, style.torchvision)
    return x


def apply_grey(x: Float[Tensor, "b c s s"], p: Decisions, style: Style) -> Float[Tensor, "b c s s"]:
    """Drop colours, and clip all images."""
    if x.shape[1] != 3:
        return x.clamp_(0, 1)
    return torch.where(p.grey[:, None, None, None], greyscale(x), x).clamp_(0, 1)


def apply_blur(x: Float[Tensor, "b c s s"], p: Decisions, style: Style) -> Float[Tensor, "b c s s"]:
    """Blur and clip in place."""
    if style.radius and len(p.blurred):
        matrix = blur_matrix(p.sigma[p.blurred], x.shape[-1], style.radius, reflect=style.torchvision)
        x.index_copy_(0, p.blurred, blur(x[p.blurred], matrix).clamp_(0, 1))
    return x
