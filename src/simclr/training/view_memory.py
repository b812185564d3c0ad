"""Memory for the views of a batch: by size, as networks take them, and by policy, as they are computed."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from simclr.views import Backend, ViewParameters, Views, by_policy, by_size


def views_of(
    images: Real[Tensor, "b h w c"], policies: Sequence[Views], drawn: Sequence[ViewParameters], backend: Backend
) -> list[Float[Tensor, "_ b _ _ c"]]:
    """Return views of images by size, computed on their device; `drawn` are those of each group of `by_policy`."""
    memory = empty_views(policies, len(images), images.shape[3], images.device)
    outputs = of_policies(memory, policies)
    for (count, policy), parameters, out in zip(by_policy(policies), drawn, outputs, strict=True):
        for views, rows in at_once(count, out):
            repeated = images if views == 1 else images.repeat(views, 1, 1, 1)
            policy.apply(repeated, parameters[rows], backend, out[rows], "channels last")
    return memory


def empty_views(
    policies: Sequence[Views], images: int, channels: int, device: torch.device
) -> list[Float[Tensor, "_ b _ _ c"]]:
    """Return memory for views by size, with the channels last, for which convolutions are fastest."""
    shapes = [(count, images, size, size, channels) for count, size in by_size(policies)]
    if device.type == "cpu":  # numpy asks for huge pages; getting ordinary ones can cost as much as the views
        return [torch.from_numpy(np.empty(shape, np.float32)) for shape in shapes]
    return [torch.empty(shape, device=device) for shape in shapes]


def of_policies(
    memory: Sequence[Real[Tensor, "_ b _ _ c"]], policies: Sequence[Views]
) -> Iterator[Real[Tensor, "_ _ _ c"]]:
    """Yield the part of the memory by size that holds the views of each group of `by_policy`, view-major."""
    counts = (count for count, _ in by_policy(policies))
    for group in memory:
        start = 0
        while start < len(group):
            stop = start + next(counts)
            yield group[start:stop].flatten(0, 1)
            start = stop


def at_once(views: int, out: Float[Tensor, "_ s s c"]) -> Iterator[tuple[int, slice]]:
    """Yield numbers and rows of the views to compute at once: all on a GPU, one on a CPU, where its images stay in the
    cache."""
    count = 1 if out.device.type == "cpu" else views
    images = len(out) // views
    for first in range(0, views, count):
        yield count, slice(first * images, (first + count) * images)


def channels_first(memory: list[Float[Tensor, "_ b _ _ c"]]) -> tuple[Float[Tensor, "_ b c _ _"], ...]:
    """Return the views as networks take them, in the same memory."""
    return tuple(group.permute(0, 1, 4, 2, 3) for group in memory)
