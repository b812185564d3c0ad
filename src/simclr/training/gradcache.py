"""Gradient caching: the gradient of a large batch in little memory.

Accumulating the gradients of small batches is another objective: each anchor would see the negatives of its own
micro-batch only. Here the embeddings of the whole batch are computed first, without activations; the loss gives the
gradient of each embedding; then the network runs once more, micro-batch by micro-batch, and backpropagates that
gradient (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"). Random layers
draw the same numbers both times.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.errors import SettingError
from simclr.randomness import torch_seed

Norms = Literal["micro", "frozen-stats"]


class MicroBatches(NamedTuple):
    """Micro-batches of one step."""

    size: int
    """number of images whose activations are held at a time"""
    bn: Norms = "micro"
    """statistics that batch norms use, see `cached_backward`"""
    name: tuple[int, ...] = (0,)
    """name of the random draws of the network's layers; each micro-batch adds its number"""

    def check(self, images: int) -> None:
        """Raise SettingError unless the size divides the number of images of a process."""
        if images % self.size:
            raise SettingError("micro_batch", f"a divisor of {images}, the images of a process", self.size)


def cached_backward(
    fabric: Fabric,
    network: Callable[..., tuple[Tensor, Tensor]],
    views: Sequence[Float[Tensor, "_ b *_"]],
    loss: Callable[..., Tensor],
    micro: MicroBatches,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows d"], Float[Tensor, "rows k"]]:
    """Backpropagate `loss` over all b images of this process, with activations of `micro.size` images at a time.

    `views` are all views of the images, those of one size together; `network` gives (h, z) for them, view-major, and
    `loss(z_a, z_b, ...)` a scalar. Returns loss, h and z without gradients, and leaves those of the parameters as one
    backward pass over the whole batch would.

    Batch norms are the exception to "as over the whole batch". With bn micro they use the statistics of one
    micro-batch (over all processes, if they are synchronised), and each buffer moves once in a step, to the mean over
    the micro-batches of the value that one alone would have given it. With bn frozen-stats they use their moving
    statistics, which do not change.
    """
    micro.check(views[0].shape[1])
    parts = _split(views, micro)
    buffers = _Buffers(network)
    with _frozen(network) if micro.bn == "frozen-stats" else nullcontext():
        h, z = _forward(network, parts, buffers.averaged)
        by_view = tuple(z.requires_grad_())
        value = loss(*by_view)
        gradients = torch.stack(torch.autograd.grad(value, by_view)).split(micro.size, dim=1)

        for i, ((part, seed), gradient) in enumerate(zip(parts, gradients, strict=True)):
            torch.manual_seed(seed)
            local = fabric.no_backward_sync(network, enabled=i < len(parts) - 1)
            with local, buffers.kept():
                _, again = network(*(group.flatten(0, 1) for group in part))
                # its gradient with respect to z is `gradient`, and the scaler of float16 can act on it
                fabric.backward((again * gradient.flatten(0, 1)).sum())
    if micro.bn == "micro":
        buffers.set_means(len(parts))
    return value.detach(), h.flatten(0, 1), z.detach().flatten(0, 1)


def embed(
    network: nn.Module, views: Sequence[Float[Tensor, "_ b *_"]], micro: MicroBatches
) -> Float[Tensor, "views b k"]:
    """Return the embeddings z of all views by the forward passes of `cached_backward`, without gradients; buffers keep
    their values."""
    with _frozen(network) if micro.bn == "frozen-stats" else nullcontext():
        return _forward(network, _split(views, micro), _Buffers(network).kept)[1]


_Part = tuple[tuple[Tensor, ...], int]
"""Views of a micro-batch by size, and the seed of its random layers"""


def _split(views: Sequence[Tensor], micro: MicroBatches) -> list[_Part]:
    parts = zip(*(group.split(micro.size, dim=1) for group in views), strict=True)
    return [(part, torch_seed(*micro.name, i)) for i, part in enumerate(parts)]


def _forward(
    network: Callable[..., tuple[Tensor, Tensor]], parts: list[_Part], context: Callable[[], AbstractContextManager]
) -> tuple[Float[Tensor, "views b d"], Float[Tensor, "views b k"]]:
    """Return (h, z) of all micro-batches together, each embedded without gradients in a `context` of its own."""
    outputs = []
    for part, seed in parts:
        torch.manual_seed(seed)
        with torch.no_grad(), context():
            h, z = network(*(group.flatten(0, 1) for group in part))
        outputs.append([x.detach().unflatten(0, (-1, part[0].shape[1])) for x in (h, z)])
    h, z = (torch.cat(list(x), dim=1) for x in zip(*outputs, strict=True))
    return h, z


class _Buffers:
    """Buffers of a module, such as moving statistics, that are restored after additional forward passes.

    They are written through `.data`: autograd may have saved them for a backward pass that does not read them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.sums: list[Tensor] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the buffers at the end."""
        before = [buffer.clone() for buffer in self.module.buffers()]
        try:
            yield
        finally:
            for buffer, value in zip(self.module.buffers(), before, strict=True):
                buffer.data.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Restore the buffers at the end, and add their changed values to the sums that `set_means` reads."""
        with self.kept():
            yield
            after = [buffer.clone() for buffer in self.module.buffers()]
            for value, total in zip(after, self.sums, strict=bool(self.sums)):
                if value.is_floating_point():
                    value += total
            self.sums = after

    def set_means(self, times: int) -> None:
        """Set each buffer to the mean of its `times` changed values, and each counter to its last value."""
        for buffer, total in zip(self.module.buffers(), self.sums, strict=True):
            buffer.data.copy_(total / times if total.is_floating_point() else total)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Put batch norms in inference mode; their gains and offsets are still trained."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
