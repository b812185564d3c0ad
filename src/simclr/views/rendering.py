"""Rendering of views by one of the backends."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simclr.views import operations, torch_backend
from simclr.views.draw import Style, ViewParameters
from simclr.views.fused import compiled_views

Backend = Literal["auto", "torch", "numba", "compiled"]
MAX_VALUES = 1 << 25  # values of the views that the batched operations compute together


def render(
    images: Tensor | Sequence[np.ndarray],
    parameters: ViewParameters,
    style: Style,
    backend: Backend,
    out: Float[Tensor, "b s s c"] | None,
    cropped: bool,
) -> Float[Tensor, "b c s s"]:
    """Return views of images, channels last, on their device, or of crops (`cropped`), to which the operations that
    follow are applied. The arguments are those of `Views.apply`."""
    device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    if backend == "numba" and not is_rgb(images):
        raise ValueError("backend numba is for uint8 images of three channels")
    if backend == "numba" or (backend == "auto" and device.type == "cpu" and is_rgb(images)):
        views = _compiled(images, parameters, style, out, cropped, device)
    else:
        views = _batched(images, parameters, style, out, cropped, fused=backend == "compiled")
    if parameters.finishing:
        with torch.autocast(device.type, enabled=False):
            for s in _parts(views):
                operations.finish(views[s], parameters[s].finishing)
    return views


def is_rgb(images: Tensor | Sequence[np.ndarray]) -> bool:
    """Return whether images are bytes of three channels, which the compiled kernels take."""
    first = images if isinstance(images, Tensor) else images[0] if images else None
    byte = torch.uint8 if isinstance(first, Tensor) else np.uint8
    return first is None or (first.dtype == byte and first.shape[-1] == 3)


def copy_to(out: Float[Tensor, "b s s c"] | None, views: Float[Tensor, "b c s s"]) -> Float[Tensor, "b c s s"]:
    """Return views in the memory of `out`, if it is given."""
    return views if out is None else out.copy_(views.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _compiled(
    images: Tensor | Sequence[np.ndarray],
    parameters: ViewParameters,
    style: Style,
    out: Tensor | None,
    cropped: bool,
    device: torch.device,
) -> Float[Tensor, "b 3 s s"]:
    from simclr.views import cpu_backend  # numba is loaded only if the CPU backend is used

    arrays = images.cpu().numpy() if isinstance(images, Tensor) else images
    needs_copy = out is None or out.device.type != "cpu" or not out.is_contiguous()
    views = torch.empty(len(arrays), style.size, style.size, 3) if needs_copy else out
    cpu_backend.render(arrays, parameters, style, cropped, views.numpy())
    views = views.permute(0, 3, 1, 2)
    return copy_to(out, views.to(device)) if needs_copy else views


def _batched(
    images: Tensor, parameters: ViewParameters, style: Style, out: Tensor | None, cropped: bool, fused: bool
) -> Float[Tensor, "b c s s"]:
    device, size = images.device, style.size
    if out is None:
        out = torch.empty(len(images), size, size, images.shape[3], device=device)
    with torch.autocast(device.type, enabled=False):
        for s in _parts(out):
            if fused:
                copy_to(out[s], compiled_views(images[s], parameters[s], style, cropped))
                continue
            decisions = torch_backend.Decisions.of(parameters[s], device)
            if cropped:
                x = torch_backend.as_fractions(images[s].permute(0, 3, 1, 2))
            else:
                antialias = style.torchvision
                x = torch_backend.crop_resize(images[s], decisions.crop, decisions.flip, size, antialias=antialias)
            copy_to(out[s], operations.apply_colour(x, decisions, style))
    return out.permute(0, 3, 1, 2)


def _parts(views: Tensor) -> list[slice]:
    """Return slices of a batch: about six times the memory of the processed views is needed."""
    part = max(1, MAX_VALUES // max(1, views[:1].numel()))
    return [slice(k, k + part) for k in range(0, len(views), part)]
