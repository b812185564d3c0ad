"""Corruptions of images at five severities, on whole batches.

Random numbers are hashes: the same image, kind and severity always have the same result. The kinds and the progression
of severities follow ImageNet-C (Hendrycks and Dietterich 2019); the parameters are our own, in units that apply to any
image size. Images are (B, 3, H, W) in [0, 1].
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from simclr.randomness import CORRUPTION_STREAM, bits, uniforms

SEVERITIES = (1, 2, 3, 4, 5)
POINTS = 33  # samples across a disc or along a line that is averaged
GREY = (0.2989, 0.587, 0.114)
Images = Float[Tensor, "b 3 h w"]
Indices = Int64[np.ndarray, " b"]


def corrupt(images: Images, kind: str, severity: int, indices: Indices, seed: int = 0) -> Images:
    """Apply one corruption to images whose numbers in their source are `indices`; severity 1 to 5."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, got {severity}")
    values, operation = KINDS[kind]
    return operation(images, values[severity - 1], indices, seed).clamp(0, 1)


def normals(shape: tuple[int, ...], indices: Indices, seed: int) -> Float[Tensor, "b ..."]:
    """Return standard normal numbers (B, *shape), a function of seed and index (Box-Muller)."""
    count = math.prod(shape)
    u = uniforms(seed, 0, indices, CORRUPTION_STREAM, 2 * count)
    z = np.sqrt(-2 * np.log1p(-u[:, :count])) * np.cos(2 * np.pi * u[:, count:])
    return torch.from_numpy(z.astype(np.float32)).view(len(indices), *shape)


def gaussian_noise(x: Images, sigma: float, indices: Indices, seed: int) -> Images:
    """Add normal noise of standard deviation `sigma`."""
    return x + sigma * normals(tuple(x.shape[1:]), indices, seed).to(x)


def shot_noise(x: Images, photons: float | int, indices: Indices, seed: int) -> Images:
    """Add the noise of few photons, whose variance grows with the value (normal in place of Poisson)."""
    return x + (x / photons).sqrt() * normals(tuple(x.shape[1:]), indices, seed).to(x)


def impulse_noise(x: Images, fraction: float, indices: Indices, seed: int) -> Images:
    """Set a fraction of the values to 0 or 1 (salt and pepper)."""
    words = uniforms(seed, 0, indices, CORRUPTION_STREAM, math.prod(x.shape[1:])).reshape(x.shape)
    u = torch.from_numpy(words).to(x)
    return torch.where(u < fraction / 2, 0.0, torch.where(u < fraction, 1.0, x))


def gaussian_blur(x: Images, sigma: float, indices: Indices, seed: int) -> Images:
    """Blur by a Gaussian of standard deviation `sigma`, a fraction of the height; mirrored at the border."""
    bell = _bell(sigma * x.shape[2]).to(x)
    return _separable(x, bell, bell)


def defocus_blur(x: Images, radius: float, indices: Indices, seed: int) -> Images:
    """Average over a disc of radius `radius`, a fraction of the height; linear between pixels."""
    r = radius * x.shape[2]
    axis = torch.linspace(-r, r, POINTS)
    y, across = torch.meshgrid(axis, axis, indexing="ij")
    within = y.square() + across.square() <= r * r
    rows, columns = _tents(y[within]), _tents(across[within])
    kernel = (rows.T @ columns / len(rows)).to(x)
    padded = F.pad(x, [len(kernel) // 2] * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel[None, None]).view_as(x)


def motion_blur(x: Images, length: float, indices: Indices, seed: int) -> Images:
    """Average over a horizontal or vertical line of length `length`, a fraction of the height, drawn for each image."""
    half = length * x.shape[2] / 2
    taps = _tents(torch.linspace(-half, half, POINTS)).mean(0).to(x)
    single = torch.ones(1).to(x)
    upright = torch.from_numpy(bits(seed, indices, CORRUPTION_STREAM) % np.uint64(2) == 0).to(x.device)
    return torch.where(upright[:, None, None, None], _separable(x, taps, single), _separable(x, single, taps))


def contrast(x: Images, factor: float, indices: Indices, seed: int) -> Images:
    """Blend with each image's mean colour."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def brightness(x: Images, shift: float, indices: Indices, seed: int) -> Images:
    """Add `shift` to every value."""
    return x + shift


def saturation(x: Images, factor: float, indices: Indices, seed: int) -> Images:
    """Blend with grey, or extrapolate from it if `factor` is above 1."""
    grey = greyscale(x)
    return grey + factor * (x - grey)


def fog(x: Images, density: float, indices: Indices, seed: int) -> Images:
    """Blend with a smooth veil of light: coarse noise of three scales."""
    veil = torch.zeros_like(x[:, :1])
    for octave, cells in enumerate((2, 4, 8)):
        coarse = torch.from_numpy(uniforms(seed, octave, indices, CORRUPTION_STREAM, cells * cells)).to(x)
        grid = coarse.view(-1, 1, cells, cells)
        veil += F.interpolate(grid, x.shape[2:], mode="bilinear", align_corners=True) * 0.5**octave / 1.75
    return x * (1 - density) + density * (0.5 + 0.5 * veil)


def pixelate(x: Images, fraction: float, indices: Indices, seed: int) -> Images:
    """Reduce the sides to a fraction by averaging, and enlarge without smoothing."""
    side = [max(1, round(fraction * s)) for s in x.shape[2:]]
    return F.interpolate(F.adaptive_avg_pool2d(x, side), x.shape[2:], mode="nearest")


def jpeg(x: Images, quality: int, indices: Indices, seed: int) -> Images:
    """Compress and decompress with Pillow."""
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels)
    for k, image in enumerate(pixels):
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            out[k] = np.asarray(Image.open(file).convert("RGB"))
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(x) / 255


def greyscale(x: Images) -> Images:
    """Return the luma, repeated over the channels."""
    weights = torch.tensor(GREY).to(x)
    return torch.einsum("bchw,c->bhw", x, weights)[:, None].expand_as(x)


def sobel(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the magnitude of the Sobel gradient of each channel, at most 1; borders are repeated."""
    slope = torch.arange(-1, 2, device=x.device, dtype=x.dtype)  # a copy from the host would wait
    smooth = (2 - slope.abs()) / 4
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    padded = F.pad(x, [1, 1, 1, 1], mode="replicate").flatten(0, 1)[:, None]
    gradient = F.conv2d(padded, kernels)
    return gradient.square().sum(1).sqrt().clamp(0, 1).view_as(x)


def _bell(sigma: float) -> Float[Tensor, " taps"]:
    reach = max(1, math.ceil(3 * sigma))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    bell = (-0.5 * (axis / sigma).square()).exp()
    return bell / bell.sum()


def _tents(offsets: Float[Tensor, " p"]) -> Float[Tensor, "p taps"]:
    """Return the weights of whole pixels at offsets from a pixel, by linear interpolation."""
    reach = math.ceil(offsets.abs().max().item())
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    return (1 - (offsets[:, None] - axis).abs()).clamp_min(0)


def _separable(x: Images, down: Float[Tensor, " m"], across: Float[Tensor, " n"]) -> Images:
    """Apply two filters of odd length, shortened for small images, with mirrored borders."""
    down, across = _cut(down, x.shape[2]), _cut(across, x.shape[3])
    pad = [len(across) // 2] * 2 + [len(down) // 2] * 2
    flat = F.pad(x, pad, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(flat, across[None, None, None]), down[None, None, :, None]).view_as(x)


def _cut(taps: Float[Tensor, " m"], side: int) -> Float[Tensor, " n"]:
    spare = max(0, len(taps) // 2 - (side - 1))
    taps = taps[spare : len(taps) - spare]
    return taps / taps.sum()


KINDS: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    "gaussian_noise": ((0.04, 0.08, 0.12, 0.18, 0.26), gaussian_noise),
    "shot_noise": ((500, 250, 100, 75, 50), shot_noise),
    "impulse_noise": ((0.01, 0.03, 0.06, 0.1, 0.17), impulse_noise),
    "gaussian_blur": ((0.01, 0.018, 0.027, 0.036, 0.054), gaussian_blur),
    "defocus_blur": ((0.013, 0.022, 0.031, 0.045, 0.062), defocus_blur),
    "motion_blur": ((0.05, 0.08, 0.12, 0.17, 0.23), motion_blur),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), contrast),
    "brightness": ((0.1, 0.2, 0.3, 0.4, 0.5), brightness),
    "saturation": ((0.6, 0.3, 0.1, 2.0, 4.0), saturation),
    "fog": ((0.2, 0.35, 0.5, 0.65, 0.75), fog),
    "pixelate": ((0.9, 0.7, 0.55, 0.4, 0.3), pixelate),
    "jpeg": ((80, 65, 50, 30, 15), jpeg),
}
"""{name: (parameter at severities 1 to 5, operation)}"""
