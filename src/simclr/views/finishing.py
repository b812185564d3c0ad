"""Finishing operations: those on finished views, by the same code on every device.

Each has a draw function, (policy, request, uniforms of its slots) -> decisions (b, k) in float64, and a function that
applies them in place to views (b, C, S, S) in [0, 1]. Decisions have a value that leaves an image as it is. No function
loops over images, and none but AutoAugment's waits for the device. torchvision, which takes seconds to load, is loaded
by the functions that use it.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from simclr.views import corruptions
from simclr.views.draw import Request
from simclr.views.torch_backend import to_device_async

GREY = 0.5  # what cutout fills a square with
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # constants of `simclr.randomness`, as signed numbers
MIXING = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))

Views = Float[Tensor, "b c s s"]
Decided = Float[np.ndarray, "b k"]
Uniforms = Float[np.ndarray, "b u"]


def draw_rotate(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw the quarter turns of each image: 0, or with the probability of the policy 1, 2 or 3."""
    return np.where(u[:, :1] < policy.rotate, 1 + np.floor(3 * u[:, 1:]), 0)


def rotate(x: Views, turns: Decided) -> None:
    """Rotate by quarter turns, counter-clockwise."""
    for count in (1, 2, 3):
        rows = select(turns[:, 0] == count, x)
        x[rows] = x[rows].rot90(count, (2, 3))


def draw_autoaugment(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw (step, magnitude) of the two steps of each image's sub-policy; a step of -1 does nothing."""
    from simclr.views.autoaugment import policy_table

    table = policy_table(policy.autoaugment_policy)
    step, probability, magnitude, signed = np.moveaxis(table[(u[:, 1] * len(table)).astype(np.int64)], 2, 0)
    used = (u[:, 2:4] < probability) & (u[:, :1] < policy.autoaugment)
    magnitude = np.where((signed > 0) & (u[:, 4:6] < 0.5), 0 - magnitude, magnitude)  # 0, not -0, of 0
    return np.stack([np.where(used, step, -1), np.where(used, magnitude, 0)], 2).reshape(-1, 4)


def autoaugment(x: Views, decided: Decided) -> None:
    """Apply each step to the images that share it, with its magnitude: first all first steps."""
    from simclr.views.autoaugment import apply_step

    on = (decided[:, [0, 2]] >= 0).any(1)
    rows, decided = select(on, x), decided[on]
    images = to_bytes(x[rows])
    for pair in (decided[:, :2], decided[:, 2:]):
        for step, magnitude in np.unique(pair[pair[:, 0] >= 0], axis=0).tolist():
            part = select((pair == (step, magnitude)).all(1), x)
            images[part] = apply_step(images[part], int(step), magnitude)
    x[rows] = from_bytes(images)


def draw_solarise(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw the threshold of each image, or infinity."""
    return np.where(u[:, :1] < policy.solarise, between(policy.solarise_threshold, u[:, 1:]), np.inf)


def solarise(x: Views, threshold: Decided) -> None:
    """Invert the values from a threshold on."""
    x.copy_(torch.where(x < column(threshold, x), x, 1 - x))


def draw_posterise(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw the number of bits that each image keeps, or 0."""
    low, high = policy.posterise_bits
    return np.where(u[:, :1] < policy.posterise, low + np.floor((high + 1 - low) * u[:, 1:]), 0)


def posterise(x: Views, bits: Decided) -> None:
    """Keep the leading bits of the values as bytes, as Pillow."""
    on = bits[:, 0] > 0
    rows, masks = select(on, x), (256 - 2 ** (8 - bits[on])).astype(np.uint8)
    x[rows] = from_bytes(to_bytes(x[rows]) & to_device_async(masks, x.device)[..., None, None])


def draw_equalise(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw which images are equalised."""
    return (u < policy.equalise).astype(np.float64)


def equalise(x: Views, on: Decided) -> None:
    """Equalise the histogram of each channel as bytes, as Pillow."""
    from torchvision.transforms.v2 import functional

    rows = select(on[:, 0] > 0, x)
    x[rows] = from_bytes(functional.equalize(to_bytes(x[rows])))


def draw_sobel(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw which images are filtered."""
    return (u < policy.sobel).astype(np.float64)


def sobel(x: Views, on: Decided) -> None:
    """Replace each channel by the magnitude of its Sobel gradient, where 1 is a step of full range, at most 1."""
    rows = select(on[:, 0] > 0, x)
    x[rows] = corruptions.sobel(x[rows])


def draw_noise(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw the standard deviation of each image's noise, or 0, and its key."""
    deviation = np.where(u[:, 0] < policy.noise, between(policy.noise_deviation, u[:, 1]), 0)
    return np.stack([deviation, key(u[:, 2])], 1)


def noise(x: Views, decided: Decided) -> None:
    """Add normal noise, and clip."""
    on = decided[:, 0] > 0
    rows, deviation = select(on, x), column(decided[on, :1], x)
    normals = math.sqrt(2) * torch.erfinv(2 * pixel_uniforms(decided[on, 1], x) - 1)
    x[rows] = (x[rows] + deviation * normals).clamp_(0, 1)


def draw_cutout(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw the square of each image, or an empty one: its centre is any pixel, what lies beyond the border is lost."""
    side = np.rint(policy.size * between(policy.cutout_side, u[:, 1]))
    corner = np.floor(policy.size * u[:, 2:]) - (side // 2)[:, None]
    side = np.where(u[:, 0] < policy.cutout, side, 0)
    return np.concatenate([corner, side[:, None], side[:, None]], 1)


def cutout(x: Views, boxes: Decided) -> None:
    """Fill a square with grey."""
    x.masked_fill_(inside(boxes, x), GREY)


def draw_erase(policy: Any, request: Request, u: Uniforms) -> Decided:
    """Draw the rectangle of each image, or an empty one, and its key: area uniform, aspect ratio log-uniform."""
    area = between(policy.erase_area, u[:, 1]) * policy.size**2
    ratio = np.exp(between(np.log(policy.erase_ratio), u[:, 2]))
    sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 1)
    sides = np.clip(np.rint(sides), 1, policy.size)
    corner = np.floor(u[:, 3:5] * (policy.size + 1 - sides))
    sides = np.where(u[:, :1] < policy.erase, sides, 0)
    return np.concatenate([corner, sides, key(u[:, 5:])], 1)


def erase(x: Views, decided: Decided) -> None:
    """Fill a rectangle with uniform noise."""
    on = decided[:, 2] > 0
    rows = select(on, x)
    x[rows] = torch.where(inside(decided[on, :4], x), pixel_uniforms(decided[on, 4], x), x[rows])


def between(limits: Any, u: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return numbers of a range (minimum, maximum), uniform if `u` is."""
    return limits[0] + (limits[1] - limits[0]) * u


def key(u: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the random bits of a uniform as a whole number."""
    return u * 2.0**53


def select(on: Bool[np.ndarray, " b"], x: Tensor) -> Int64[Tensor, " n"]:
    """Return the numbers of the images that are on, on the device of x."""
    return to_device_async(np.flatnonzero(on), x.device)


def column(values: Float[np.ndarray, "n 1"], x: Tensor) -> Float[Tensor, "n 1 1 1"]:
    """Return one number per image, on the device of x."""
    return to_device_async(values.astype(np.float32), x.device)[..., None, None]


def inside(boxes: Float[np.ndarray, "n 4"], x: Tensor) -> Bool[Tensor, "n 1 s s"]:
    """Return which pixels lie in the box (y, x, height, width) of each image."""
    start, sides = to_device_async(boxes.astype(np.float32), x.device).split(2, 1)
    pixel = torch.arange(x.shape[-1], device=x.device)
    down, across = ((pixel >= start[..., None]) & (pixel < (start + sides)[..., None])).unbind(1)
    return down[:, None, :, None] & across[:, None, None, :]


def to_bytes(x: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Round values in [0, 1] to bytes."""
    return (x * 255).round().to(torch.uint8)


def from_bytes(x: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return bytes as values in [0, 1]."""
    return x.float() / 255


def pixel_uniforms(keys: Float[np.ndarray, " n"], x: Tensor) -> Float[Tensor, "n c s s"]:
    """Return uniforms in (0, 1) for all values of n images, functions of their keys and places; as `randomness.bits`,
    of which numpy's form is for the host."""
    places = torch.arange(1, x[0].numel() + 1, device=x.device) * GOLDEN
    words = to_device_async(keys.astype(np.int64), x.device)[:, None] + places
    for shift, factor in MIXING:
        words = (words ^ shifted(words, shift)) * factor
    words = words ^ shifted(words, 31)
    # of 23 bits and a half, which float32 holds exactly, so that 0 and 1 are left out
    return ((shifted(words, 41) + 0.5) * 2.0**-23).float().view(-1, *x.shape[1:])


def shifted(words: Int64[Tensor, "..."], count: int) -> Int64[Tensor, "..."]:
    """Return words shifted to the right as unsigned numbers."""
    return (words >> count) & ((1 << (64 - count)) - 1)
