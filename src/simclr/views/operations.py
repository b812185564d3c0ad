"""The augmentation as a table: its operations in the order in which they are applied.

A new operation is an entry of the table, with settings in `Views` and slots in `simclr.randomness`. The operations of
the papers' recipes are fused: they have fields of `ViewParameters`, a tensor function, and a compiled kernel that the
CPU backend calls in the same order, see `cpu_colour.colour_views`. The others finish the views of either backend, by
one function in `simclr.views.finishing`, and are off by default. As rotations commute with all that precedes them but
the crop, their place has no effect; solarisation follows the blur as in BYOL, equalisation follows it as in solo-learn.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.errors import SettingError
from simclr.randomness import (
    AUTOAUGMENT_SLOTS,
    BLUR_SIGMA_SLOT,
    BLUR_SLOT,
    CUTOUT_SLOTS,
    EQUALISE_SLOT,
    ERASE_SLOTS,
    FLIP_SLOT,
    GREY_SLOT,
    JITTER_FACTOR_SLOTS,
    JITTER_ORDER_SLOT,
    JITTER_SLOT,
    NOISE_SLOTS,
    POSTERISE_SLOTS,
    ROTATE_SLOTS,
    SOBEL_SLOT,
    SOLARISE_SLOTS,
    uniforms,
)
from simclr.views import draw, finishing, torch_backend
from simclr.views.draw import Request, Style, ViewParameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One operation of the augmentation."""

    name: str
    """name, and that of the field of `Views` with its probability, which only the crop lacks"""
    settings: tuple[str, ...]
    """fields of `Views` that it reads, besides `size` and `semantics`"""
    slots: tuple[int, ...]
    """random slots of `simclr.randomness`, as columns of the uniforms that `draw` receives"""
    channels: int | None = None
    """number of channels that it needs; None for any number. Images of other channels are never grey, and their jitter
    has no saturation and no hue"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fused(Operation):
    """Operation with an implementation for each backend."""

    draw: Callable[[Any, Request, Float[np.ndarray, "b k"]], dict[str, np.ndarray]]
    """(policy, request, uniforms) -> fields of `ViewParameters`"""
    tensor: Callable[[Tensor, torch_backend.Decisions, Style], Tensor] | None
    """function of (B, C, S, S) images; None for operations that are part of the resampling"""
    kernel: str
    """compiled function of the CPU backend"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finishing(Operation):
    """Operation on finished views, with one implementation for every device."""

    draw: Callable[[Any, Request, Float[np.ndarray, "b u"]], Float[np.ndarray, "b k"]]
    """(policy, request, uniforms) -> an entry of `ViewParameters.finishing`"""
    apply: Callable[[Tensor, Float[np.ndarray, "b k"]], None]
    """function of views (B, C, S, S) in [0, 1], in place, and of what `draw` returned"""


OPERATIONS: tuple[Operation, ...] = (
    Fused(
        name="crop",
        settings=("crop_area", "crop_ratio"),
        slots=(),  # those from CROP_SLOT on, drawn by attempt
        draw=draw.draw_crop,
        tensor=None,
        kernel="cpu_geometry.resample_views",
    ),
    Fused(
        name="flip",
        settings=("flip",),
        slots=(FLIP_SLOT,),
        draw=draw.draw_flip,
        tensor=None,
        kernel="cpu_geometry.resample_views",
    ),
    Fused(
        name="jitter",
        settings=("jitter", "strength", "brightness", "contrast", "saturation", "hue", "brightness_form"),
        slots=(JITTER_SLOT, JITTER_ORDER_SLOT, *JITTER_FACTOR_SLOTS),
        draw=draw.draw_jitter,
        tensor=torch_backend.apply_jitter,
        kernel="cpu_colour.jitter",
    ),
    Fused(
        name="grey",
        settings=("grey",),
        slots=(GREY_SLOT,),
        draw=draw.draw_grey,
        tensor=torch_backend.apply_grey,
        kernel="cpu_colour.greyscale",
        channels=3,
    ),
    Fused(
        name="blur",
        settings=("blur", "blur_sigma", "blur_kernel"),
        slots=(BLUR_SLOT, BLUR_SIGMA_SLOT),
        draw=draw.draw_blur,
        tensor=torch_backend.apply_blur,
        kernel="cpu_colour.blur",
    ),
    Finishing(
        name="rotate",
        settings=("rotate",),
        slots=ROTATE_SLOTS,
        draw=finishing.draw_rotate,
        apply=finishing.rotate,
    ),
    Finishing(
        name="autoaugment",
        settings=("autoaugment", "autoaugment_policy"),
        slots=AUTOAUGMENT_SLOTS,
        draw=finishing.draw_autoaugment,
        apply=finishing.autoaugment,
        channels=3,
    ),
    Finishing(
        name="solarise",
        settings=("solarise", "solarise_threshold"),
        slots=SOLARISE_SLOTS,
        draw=finishing.draw_solarise,
        apply=finishing.solarise,
    ),
    Finishing(
        name="posterise",
        settings=("posterise", "posterise_bits"),
        slots=POSTERISE_SLOTS,
        draw=finishing.draw_posterise,
        apply=finishing.posterise,
    ),
    Finishing(
        name="equalise",
        settings=("equalise",),
        slots=(EQUALISE_SLOT,),
        draw=finishing.draw_equalise,
        apply=finishing.equalise,
    ),
    Finishing(
        name="sobel",
        settings=("sobel",),
        slots=(SOBEL_SLOT,),
        draw=finishing.draw_sobel,
        apply=finishing.sobel,
    ),
    Finishing(
        name="noise",
        settings=("noise", "noise_deviation"),
        slots=NOISE_SLOTS,
        draw=finishing.draw_noise,
        apply=finishing.noise,
    ),
    Finishing(
        name="cutout",
        settings=("cutout", "cutout_side"),
        slots=CUTOUT_SLOTS,
        draw=finishing.draw_cutout,
        apply=finishing.cutout,
    ),
    Finishing(
        name="erase",
        settings=("erase", "erase_area", "erase_ratio"),
        slots=ERASE_SLOTS,
        draw=finishing.draw_erase,
        apply=finishing.erase,
    ),
)

FUSED = tuple(operation for operation in OPERATIONS if isinstance(operation, Fused))
FINISHING = tuple(operation for operation in OPERATIONS if isinstance(operation, Finishing))


def draw_parameters(policy: Any, request: Request) -> ViewParameters:
    """Draw the decisions of all operations, of the finishing ones only if they are on."""
    on = tuple([operation for operation in FINISHING if getattr(policy, operation.name) > 0])
    slots, columns = _columns(on)
    u = uniforms(request.seed, request.epoch, request.indices, request.view, slots)
    fields: dict[str, Any] = {"sizes": request.sizes}
    for operation, own in zip(FUSED, columns, strict=False):
        fields |= operation.draw(policy, request, u[:, own])
    last = zip(on, columns[len(FUSED) :], strict=True)
    return ViewParameters(**fields, finishing={op.name: op.draw(policy, request, u[:, own]) for op, own in last})


@cache
def _columns(on: tuple[Finishing, ...]) -> tuple[Int64[np.ndarray, " u"], list[np.ndarray]]:
    """Return the slots of the fused and of these operations, in order, and which of them each operation has."""
    slots = np.sort([slot for operation in (*FUSED, *on) for slot in operation.slots])
    return slots, [np.searchsorted(slots, operation.slots) for operation in (*FUSED, *on)]


def apply_colour(
    x: Float[Tensor, "b c s s"], decisions: torch_backend.Decisions, style: Style
) -> Float[Tensor, "b c s s"]:
    """Apply the fused operations that follow the resampling, on any device; `x` may be changed."""
    for operation in FUSED:
        if operation.tensor is not None:
            x = operation.tensor(x, decisions, style)
    return x


def finish(x: Float[Tensor, "b c s s"], decided: dict[str, Float[np.ndarray, "b _"]]) -> None:
    """Apply the finishing operations that are on to views, in place."""
    for operation in FINISHING:
        if operation.name in decided:
            operation.apply(x, decided[operation.name])


def require_channels(policy: Any, channels: int) -> None:
    """Raise SettingError for a finishing operation that is on and does not take images of this number of channels."""
    for operation in FINISHING:
        if getattr(policy, operation.name) > 0 and operation.channels not in (None, channels):
            allowed = f"0 for images of {channels} channels, since it needs {operation.channels}"
            raise SettingError(f"views.{operation.name}", allowed, getattr(policy, operation.name))


def alone(policy: Any, name: str) -> Any:
    """Return the policy that applies one operation to every image, after the crop."""
    return replace(policy, **{op.name: float(op.name == name) for op in OPERATIONS if op.name != "crop"})
