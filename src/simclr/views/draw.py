"""Random decisions of views: one row of parameters per image, drawn from stateless uniforms."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from simclr.randomness import CROP_SLOT, uniforms

ORDERS = np.array(list(permutations(range(4))), np.uint8)
OBJECT_COVERED = 0.1  # default of TF's sample_distorted_bounding_box: the minimum area of a crop that it accepts

Crop = Int[np.ndarray, "... 4"]
# uniforms (n, k, 4) and source sizes (n, 2) -> crops (n, k, 4), accepted (n, k)
Sampler = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Decided = dict[str, np.ndarray]  # fields of ViewParameters


class Style(NamedTuple):
    """Settings of a policy that are the same for all images, as the backends need them."""

    size: int
    """height and width of a view"""
    torchvision: bool
    """semantics of torchvision in place of the official ones"""
    additive: bool
    """brightness is added in place of multiplied"""
    radius: int
    """taps of the blur on each side of its centre"""


class Request(NamedTuple):
    """Images to draw decisions for."""

    seed: int
    epoch: int
    indices: Int[np.ndarray, " b"]
    view: int | Int[np.ndarray, " b"]
    sizes: Int[np.ndarray, "b 2"]
    """(height, width) of the images, pixels"""


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """Decisions of B views, one row per image; a slice, an array or an integer as index selects rows."""

    sizes: Int[np.ndarray, "b 2"]
    """(height, width) of the source image, pixels"""
    crop: Int[np.ndarray, "b 4"]
    """(y, x, height, width) of the crop, pixels of the source image"""
    flip: Bool[np.ndarray, " b"]
    jitter: Bool[np.ndarray, " b"]
    order: UInt8[np.ndarray, "b 4"]
    """order[:, j] is the operation applied j-th: 0 brightness, 1 contrast, 2 saturation, 3 hue"""
    factors: Float[np.ndarray, "b 4"]
    """factor of brightness (or what is added), of contrast and of saturation; hue in turns. float32"""
    grey: Bool[np.ndarray, " b"]
    blur: Bool[np.ndarray, " b"]
    sigma: Float[np.ndarray, " b"]
    """standard deviation of the blur, pixels of the view. float32"""
    finishing: dict[str, Float[np.ndarray, "b _"]] = field(default_factory=dict)
    """decisions of the finishing operations that are on, by name; float64, as `simclr.views.finishing` reads them"""

    def __len__(self) -> int:
        return len(self.crop)

    def __getitem__(self, rows: int | np.integer | slice | np.ndarray) -> "ViewParameters":
        if isinstance(rows, int | np.integer):
            rows = [rows]
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return ViewParameters(**arrays, finishing={name: array[rows] for name, array in self.finishing.items()})

    def split(self, views: int) -> "list[ViewParameters]":
        """Return the decisions of each of `views` views that were drawn together."""
        images = len(self) // views
        return [self[first * images : (first + 1) * images] for first in range(views)]


_ARRAYS = [field.name for field in fields(ViewParameters) if field.name != "finishing"]


def plain(sizes: Int[np.ndarray, "b 2"], crop: Int[np.ndarray, "b 4"]) -> ViewParameters:
    """Return the decisions of crop and resize alone."""
    n = len(crop)
    return ViewParameters(
        sizes=sizes,
        crop=crop,
        flip=np.zeros(n, bool),
        jitter=np.zeros(n, bool),
        order=np.tile(ORDERS[:1], (n, 1)),
        factors=np.tile(np.array([1, 1, 1, 0], np.float32), (n, 1)),
        grey=np.zeros(n, bool),
        blur=np.zeros(n, bool),
        sigma=np.ones(n, np.float32),
    )


# The draw functions of the table of operations: (policy, request, uniforms of the operation's slots) -> fields


def draw_crop(policy: Any, request: Request, u: Float[np.ndarray, "b k"]) -> Decided:
    """Draw the crops; each attempt has slots of its own, so `u` is not used."""
    if policy.semantics == "torchvision":
        attempts, tries = torchvision_attempts(policy.crop_area, policy.crop_ratio), 10
        fallback = centre(request.sizes, policy.crop_ratio)
    else:
        attempts, tries = official_attempts(policy.crop_area, policy.crop_ratio), 100
        fallback = whole(request.sizes)
    return {"crop": first_accepted(attempts, fallback, tries, request)}


def draw_flip(policy: Any, request: Request, u: Float[np.ndarray, "b 1"]) -> Decided:
    """Draw which images are flipped."""
    return {"flip": u[:, 0] < policy.flip}


def draw_jitter(policy: Any, request: Request, u: Float[np.ndarray, "b 6"]) -> Decided:
    """Draw whether colours are jittered, the order of the four operations, and their factors."""
    half = policy.strength * np.array([policy.brightness, policy.contrast, policy.saturation, policy.hue])
    middle = np.array([policy.brightness_form == "multiply", 1, 1, 0])
    low, high = middle - half, middle + half
    if policy.brightness_form == "multiply":
        low[0] = max(low[0], 0)
    if policy.semantics == "torchvision":
        low[1:3] = np.maximum(low[1:3], 0)
    factors = low + (high - low) * u[:, 2:6]
    order = ORDERS[(u[:, 1] * len(ORDERS)).astype(np.int64)]
    return {"jitter": u[:, 0] < policy.jitter, "order": order, "factors": factors.astype(np.float32)}


def draw_grey(policy: Any, request: Request, u: Float[np.ndarray, "b 1"]) -> Decided:
    """Draw which images lose their colours."""
    return {"grey": u[:, 0] < policy.grey}


def draw_blur(policy: Any, request: Request, u: Float[np.ndarray, "b 2"]) -> Decided:
    """Draw which images are blurred, and how much."""
    minimum, maximum = policy.blur_sigma
    return {"blur": u[:, 0] < policy.blur, "sigma": (minimum + (maximum - minimum) * u[:, 1]).astype(np.float32)}


def _columns(u: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    return [u[..., 0], u[..., 1], u[..., 2], u[..., 3], height, width]


def official_attempts(area: tuple[float, float], ratio: tuple[float, float]) -> Sampler:
    """Return the attempts of TF's `sample_distorted_bounding_box` over a box that is the whole image.

    The aspect ratio is uniform, then the height is a uniform integer among those that satisfy the area; the
    last offset is never chosen; crops below a tenth of the image are rejected regardless of `area`.
    """

    def attempts(u: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u_ratio, u_height, u_y, u_x, height, width = _columns(u, sizes)
        aspect = ratio[0] + (ratio[1] - ratio[0]) * u_ratio
        low, high = area[0] * height * width, area[1] * height * width
        h_max = np.rint(np.sqrt(high / aspect))
        fitting = np.floor((width + 0.5 - 1e-7) / aspect)
        fitting -= np.rint(fitting * aspect) > width
        h_max = np.minimum(np.where(np.rint(h_max * aspect) > width, fitting, h_max), height)
        h_min = np.minimum(np.rint(np.sqrt(low / aspect)), h_max)
        h = h_min + np.floor(u_height * (h_max - h_min + 1))
        h += h * np.rint(h * aspect) < low
        h -= h * np.rint(h * aspect) > high
        w = np.rint(h * aspect)
        size = h * w
        accepted = (size >= np.maximum(low, OBJECT_COVERED * height * width)) & (size <= high)
        accepted &= (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
        crop = np.stack([np.floor(u_y * (height - h)), np.floor(u_x * (width - w)), h, w], -1)
        return crop, accepted

    return attempts


def torchvision_attempts(area: tuple[float, float], ratio: tuple[float, float]) -> Sampler:
    """Return the attempts of torchvision's `RandomResizedCrop`: uniform area, log-uniform aspect ratio."""
    log = np.log(ratio)

    def attempts(u: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u_ratio, u_area, u_y, u_x, height, width = _columns(u, sizes)
        aspect = np.exp(log[0] + (log[1] - log[0]) * u_ratio)
        size = (area[0] + (area[1] - area[0]) * u_area) * height * width
        h, w = np.rint(np.sqrt(size / aspect)), np.rint(np.sqrt(size * aspect))
        accepted = (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
        crop = np.stack([np.floor(u_y * (height - h + 1)), np.floor(u_x * (width - w + 1)), h, w], -1)
        return crop, accepted

    return attempts


def whole(sizes: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 4"]:
    """Return the whole image: the official crop after 100 rejected attempts."""
    return np.concatenate([np.zeros_like(sizes), sizes], 1)


def centre(sizes: Int[np.ndarray, "n 2"], ratio: tuple[float, float]) -> Int[np.ndarray, "n 4"]:
    """Return the largest central crop within the aspect ratios: torchvision's crop after 10 rejected attempts."""
    height, width = sizes[:, 0], sizes[:, 1]
    h = np.where(width < ratio[0] * height, np.rint(width / ratio[0]), height)
    w = np.where(width > ratio[1] * height, np.rint(height * ratio[1]), width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], 1).astype(np.int64)


def first_accepted(
    attempts: Sampler, fallback: Int[np.ndarray, "b 4"], tries: int, request: Request
) -> Int[np.ndarray, "b 4"]:
    """Return the first accepted attempt of each image, or its fallback."""
    view = np.broadcast_to(request.view, len(request.indices))
    chosen = fallback.astype(np.int64)
    left, start = np.arange(len(request.indices)), 0
    # most images accept the first attempt; increasingly long rounds bound the number of passes for the others
    for stop in (1, 8, tries):
        if not len(left):
            break
        slots = np.arange(CROP_SLOT + 4 * start, CROP_SLOT + 4 * stop)
        u = uniforms(request.seed, request.epoch, request.indices[left], view[left], slots)
        crop, accepted = attempts(u.reshape(len(left), stop - start, 4), request.sizes[left])
        first, is_accepted = accepted.argmax(1), accepted.any(1)
        chosen[left[is_accepted]] = crop[is_accepted, first[is_accepted]]
        left, start = left[~is_accepted], stop
    return chosen
