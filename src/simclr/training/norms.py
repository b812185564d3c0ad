"""Batch norms with the statistics of one process each, and the shuffling of a batch over the processes."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from simclr.randomness import NORM_STREAM, bits
from simclr.runs.environment import has_processes
from simclr.training.gathering import gather

Statistics = Literal["sync", "local", "shuffle"]


class Shuffle:
    """Exchange of the images of a step among the processes before a network, and of its embeddings after it.

    Two views of an image on one process have the same statistics, which tell a network that they belong together. So
    each process embeds images drawn at random from all (He et al. 2020, section 3.3). The draw is a function of the
    seed and the step; gradients are exact.
    """

    def __init__(self, seed: int, networks: Sequence[nn.Module]) -> None:
        """`networks`, numbered in this order: images of each size -> (h, z). In training their images are exchanged; h
        stays where it was computed, only z returns."""
        self._seed, self.step = seed, 0
        for number, network in enumerate(networks if has_processes() else ()):
            network.register_forward_pre_hook(partial(self._scatter, number))
            network.register_forward_hook(partial(self._restore, number))

    def order(self, rows: int, number: int, size: int) -> Int64[Tensor, " rows"]:
        """Return the rows of all processes in the order in which they embed them: the first process the first ones."""
        words = bits(self._seed, self.step, np.arange(rows), NORM_STREAM, number, size)
        return torch.from_numpy(np.argsort(words, kind="stable"))

    @torch.compiler.disable
    def _scatter(self, number: int, network: nn.Module, images: Sequence[Float[Tensor, "_ c _ _"]]) -> Sequence[Tensor]:
        if not network.training:
            return images
        return tuple(self._exchange(x, self._order(x, number, k)) for k, x in enumerate(images))

    @torch.compiler.disable
    def _restore(
        self, number: int, network: nn.Module, images: Sequence[Tensor], outputs: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        h, z = outputs
        if not network.training:
            return h, z
        parts = enumerate(z.split([len(x) for x in images]))
        return h, torch.cat([self._exchange(part, self._order(part, number, k).argsort()) for k, part in parts])

    def _order(self, x: Tensor, number: int, size: int) -> Int64[Tensor, " rows"]:
        return self.order(len(x) * dist.get_world_size(), number, size)

    def _exchange(self, x: Tensor, order: Int64[Tensor, " rows"]) -> Tensor:
        """Return the rows of this process in another order of the rows of all."""
        return gather(x)[order.to(x.device).chunk(dist.get_world_size())[dist.get_rank()]]


def average_buffers(module: nn.Module) -> None:
    """Replace the moving statistics of a module by their mean over the processes, which each of them then holds."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if buffers and has_processes():
        total = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(total)
        means = (total / dist.get_world_size()).split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [mean.view_as(buffer) for mean, buffer in zip(means, buffers, strict=True)])
