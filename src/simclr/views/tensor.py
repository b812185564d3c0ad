"""The views as batched tensor operations with one set of parameters an image, on any device.

The definition the CPU kernels are tested against, and the path of every other device. Pure functions of
tensors without host synchronisation or loops over images, so that torch.compile can fuse them.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from simclr.views.draw import ViewParameters

LUMA = (0.2989, 0.587, 0.114)  # red, green, blue; both TensorFlow's and torchvision's grey
TINY = 1e-20


def to_device(parameters: ViewParameters, device: torch.device) -> dict[str, Tensor]:
    """The decisions as tensors, sent in one copy."""
    p = parameters
    columns = [p.crop, p.flip[:, None], p.jitter[:, None], p.order, p.factors]
    columns += [p.grey[:, None], p.blur[:, None], p.sigma[:, None]]
    rows = torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))
    if device.type == "cuda":
        rows = rows.pin_memory()
    rows = rows.to(device, non_blocking=True)
    crop, flip, jitter, order, factors, grey, blur, sigma = rows.split([4, 1, 1, 4, 4, 1, 1, 1], 1)
    return dict(
        crop=crop.long(), flip=flip[:, 0] > 0, jitter=jitter[:, 0] > 0, order=order.long(),
        factors=factors, grey=grey[:, 0] > 0, blur=blur[:, 0] > 0, sigma=sigma[:, 0],
    )  # fmt: skip


def resampling(
    start: Int[Tensor, " b"], length: Int[Tensor, " b"], flip: Bool[Tensor, " b"] | None,
    source: int, size: int, antialias: bool,
) -> Float[Tensor, "b s h"]:  # fmt: skip
    """Per image, the matrix that cuts `length` of `source` pixels from `start` on and resizes them to `size`.

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


def crop_resize(
    images: UInt8[Tensor, "b h w 3"], crop: Int[Tensor, "b 4"], flip: Bool[Tensor, " b"],
    size: int, antialias: bool,
) -> Float[Tensor, "b 3 s s"]:  # fmt: skip
    """Crop, resize and flip, as two batched matrix products; overshoot beyond [0, 1] is kept."""
    b, height, width, _ = images.shape
    y, x, h, w = crop.unbind(1)
    rows = resampling(y, h, None, height, size, antialias)
    columns = resampling(x, w, flip, width, size, antialias)
    pixels = images.reshape(b, height, width * 3).float() / 255
    tall = torch.bmm(rows, pixels).view(b, size, width, 3).permute(0, 3, 1, 2)
    views = torch.bmm(tall.reshape(b, 3 * size, width), columns.transpose(1, 2))
    return views.view(b, 3, size, size)


def greyscale(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def saturate(x: Float[Tensor, "b 3 h w"], factor: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Scale the S of HSV and clip it to [0, 1], V and H kept."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    return value - torch.minimum(factor, value / chroma.clamp(min=TINY)).clamp(min=0) * (value - x)


def rotate_hue(x: Float[Tensor, "b 3 h w"], turns: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Rotate the hue, keeping the largest and the smallest channel of each pixel."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    part = chroma.clamp(min=TINY)
    sextant = torch.where(
        value == red, (green - blue) / part,
        torch.where(value == blue, 4 + (red - green) / part, 2 + (blue - red) / part),
    )  # fmt: skip
    peaks = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(1, 3, 1, 1)
    k = (sextant + 6 * turns + peaks).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def jitter(
    x: Float[Tensor, "b 3 h w"], order: Int[Tensor, "b 4"], factors: Float[Tensor, "b 4"],
    additive: bool, torchvision: bool,
) -> Float[Tensor, "b 3 h w"]:  # fmt: skip
    """Brightness, contrast, saturation and hue in each image's order, each followed by a clip to [0, 1].

    In each of four rounds every operation is evaluated for all images, with the neutral factor where it is
    another's turn. Brightness and contrast share one multiplication and addition.
    """
    one = torch.ones_like(factors[:, 0])
    for round_ in order.unbind(1):
        brightness, contrast, saturation, hue = (
            torch.where(round_ == op, factor, neutral)[:, None, None, None]
            for op, (factor, neutral) in enumerate(
                zip(factors.unbind(1), (0 * one if additive else one, one, one, 0 * one), strict=True)
            )
        )
        mean = (greyscale(x) if torchvision else x).mean((2, 3), keepdim=True)
        x = x * contrast + mean * (1 - contrast)
        x = x + brightness if additive else x * brightness
        grey_blend = saturation * x + (1 - saturation) * greyscale(x) if torchvision else None
        saturated = saturate(x, saturation) if grey_blend is None else grey_blend
        turn = round_[:, None, None, None]
        x = torch.where(turn == 2, saturated, torch.where(turn == 3, rotate_hue(x, hue), x)).clamp(0, 1)
    return x


def blur_matrix(
    sigma: Float[Tensor, " b"], chosen: Bool[Tensor, " b"], size: int, radius: int, reflect: bool
) -> Float[Tensor, "b s s"]:
    """Per image, the matrix of a Gaussian of 2 radius + 1 taps; the identity where not chosen."""
    i = torch.arange(size, device=sigma.device, dtype=torch.float32)
    taps = torch.arange(-radius, radius + 1, device=sigma.device) / sigma[:, None]
    total = torch.exp(-0.5 * taps**2).sum(1)[:, None, None]

    def weight(distance: Tensor) -> Tensor:
        gaussian = torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2) / total
        return torch.where(distance.abs() <= radius, gaussian, 0.0)

    target, source = i[:, None], i
    matrix = weight(source - target)
    if reflect:  # a mirrored pixel adds the weight of its image beyond the edge, which has no image itself
        matrix = matrix + torch.where(source > 0, weight(source + target), 0.0)
        beyond = 2 * (size - 1) - source - target
        matrix = matrix + torch.where(source < size - 1, weight(beyond), 0.0)
    return torch.where(chosen[:, None, None], matrix, torch.eye(size, device=sigma.device))


def blur(x: Float[Tensor, "b 3 s s"], matrix: Float[Tensor, "b s s"]) -> Float[Tensor, "b 3 s s"]:
    b, _, size, _ = x.shape
    along_x = torch.bmm(x.reshape(b, 3 * size, size), matrix.transpose(1, 2)).view(b, 3, size, size)
    return torch.matmul(matrix[:, None], along_x)


def colour(
    x: Float[Tensor, "b 3 s s"], p: dict[str, Tensor], additive: bool, torchvision: bool, radius: int
) -> Float[Tensor, "b 3 s s"]:
    """Jitter, grey, clip, blur, clip: what follows the crop."""
    jittered = jitter(x, p["order"], p["factors"], additive, torchvision)
    x = torch.where(p["jitter"][:, None, None, None], jittered, x)
    x = torch.where(p["grey"][:, None, None, None], greyscale(x), x).clamp(0, 1)
    if radius:
        x = blur(x, blur_matrix(p["sigma"], p["blur"], x.shape[-1], radius, reflect=torchvision)).clamp(0, 1)
    return x
