"""The augmentation as a table: its operations in the order in which they are applied.

A new operation is an entry of the table, with settings in `Views`, slots in `simclr.randomness`, fields of
`ViewParameters` that its draw function returns, a tensor function and a compiled kernel. The table drives the draws and
the tensor backend; the CPU backend calls the kernels in the same order, see `cpu_colour.colour_views`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from simclr.randomness import (
    BLUR_SIGMA_SLOT,
    BLUR_SLOT,
    FLIP_SLOT,
    GREY_SLOT,
    JITTER_FACTOR_SLOTS,
    JITTER_ORDER_SLOT,
    JITTER_SLOT,
    uniforms,
)
from simclr.views import draw, torch_backend
from simclr.views.draw import Request, Style, ViewParameters


@dataclass(frozen=True)
class Operation:
    """One operation of the augmentation."""

    name: str
    settings: tuple[str, ...]
    """fields of `Views` that it reads, besides `size` and `semantics`"""
    slots: tuple[int, ...]
    """random slots of `simclr.randomness`, as columns of the uniforms that `draw` receives"""
    draw: Callable[[Any, Request, Float[np.ndarray, "b k"]], dict[str, np.ndarray]]
    """(policy, request, uniforms) -> fields of `ViewParameters`"""
    tensor: Callable[[Tensor, torch_backend.Decisions, Style], Tensor] | None
    """function of (B, 3, S, S) images; None for operations that are part of the resampling"""
    kernel: str
    """compiled function of the CPU backend"""
    channels: int | None = None
    """number of channels that it needs; None for any number"""


OPERATIONS = (
    Operation(
        name="crop",
        settings=("crop_area", "crop_ratio"),
        slots=(),  # those from CROP_SLOT on, drawn by attempt
        draw=draw.draw_crop,
        tensor=None,
        kernel="cpu_geometry.resample_views",
    ),
    Operation(
        name="flip",
        settings=("flip",),
        slots=(FLIP_SLOT,),
        draw=draw.draw_flip,
        tensor=None,
        kernel="cpu_geometry.resample_views",
    ),
    Operation(
        name="jitter",
        settings=("jitter", "strength", "brightness", "contrast", "saturation", "hue", "brightness_form"),
        slots=(JITTER_SLOT, JITTER_ORDER_SLOT, *JITTER_FACTOR_SLOTS),
        draw=draw.draw_jitter,
        tensor=torch_backend.apply_jitter,
        kernel="cpu_colour.jitter",
        channels=3,
    ),
    Operation(
        name="grey",
        settings=("grey",),
        slots=(GREY_SLOT,),
        draw=draw.draw_grey,
        tensor=torch_backend.apply_grey,
        kernel="cpu_colour.greyscale",
        channels=3,
    ),
    Operation(
        name="blur",
        settings=("blur", "blur_sigma", "blur_kernel"),
        slots=(BLUR_SLOT, BLUR_SIGMA_SLOT),
        draw=draw.draw_blur,
        tensor=torch_backend.apply_blur,
        kernel="cpu_colour.blur",
    ),
)

_SLOTS = sorted(slot for operation in OPERATIONS for slot in operation.slots)
_COLUMNS = [np.searchsorted(_SLOTS, operation.slots) for operation in OPERATIONS]


def draw_parameters(policy: Any, request: Request) -> ViewParameters:
    """Draw the decisions of all operations."""
    u = uniforms(request.seed, request.epoch, request.indices, request.view, np.array(_SLOTS))
    fields = {"sizes": request.sizes}
    for operation, columns in zip(OPERATIONS, _COLUMNS, strict=True):
        fields |= operation.draw(policy, request, u[:, columns])
    return ViewParameters(**fields)


def apply_colour(
    x: Float[Tensor, "b 3 s s"], decisions: torch_backend.Decisions, style: Style
) -> Float[Tensor, "b 3 s s"]:
    """Apply the operations that follow the resampling, on any device; `x` may be changed."""
    for operation in OPERATIONS:
        if operation.tensor is not None:
            x = operation.tensor(x, decisions, style)
    return x
