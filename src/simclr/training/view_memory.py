"""Memory for the views of a batch: by size, as networks take them, and by policy, as they are computed."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from simclr.views import Views, by_policy, by_size


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
