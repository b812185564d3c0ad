"""Large batches in little memory, with the gradient of the whole batch.

Adding up the gradients of small batches is another objective: each anchor would see the negatives of its own part
only. Here the embeddings of the whole batch are computed first, without activations; the loss gives the gradient of
each embedding; then the network runs once more, part by part, and each part passes its share of that gradient on
(Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"). Random layers draw the
same numbers both times.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.randomness import bits

Norms = Literal["micro", "frozen-stats"]


def cached_backward(
    fabric: Fabric,
    network: Callable[[Tensor], tuple[Tensor, Tensor]],
    views: Float[Tensor, "2 b *image"],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    micro: int,
    bn: Norms = "micro",
    name: tuple[int, ...] = (0,),
) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b d"], Float[Tensor, "2*b k"]]:
    """The gradient of `loss` over all b images of this process, with activations of `micro` images at a time.

    `network` gives (h, z) for both views of some images, `loss(z_a, z_b)` a scalar. Returns loss, h and z without
    gradients, and leaves those of the parameters as one backward pass over the whole batch would. `name` names the
    random draws of the network's layers, part by part.

    Batch norms are the exception to "as over the whole batch". bn micro: they use the statistics of one part (over
    all processes, where they are synchronised), and each buffer moves once in a step, to the mean over the parts of
    what one part alone would have made of it. bn frozen-stats: they use their moving statistics, which stay.

    Raises ValueError where `micro` does not divide b.
    """
    if views.shape[1] % micro:
        raise ValueError(f"micro_batch is {micro}; it must divide the {views.shape[1]} images of a process")
    parts = views.split(micro, dim=1)
    seeds = [int(bits(*name, i)[0] >> 1) for i in range(len(parts))]
    buffers = _Buffers(network)
    with _frozen(network) if bn == "frozen-stats" else nullcontext():
        h, z = [], []
        for part, seed in zip(parts, seeds, strict=True):
            torch.manual_seed(seed)
            with torch.no_grad(), buffers.averaged():
                found = network(part.flatten(0, 1))
            for seen, value in zip((h, z), found, strict=True):
                seen.append(value.detach().unflatten(0, (2, micro)))
        z_a, z_b = torch.cat(z, dim=1).requires_grad_()
        value = loss(z_a, z_b)
        gradients = torch.stack(torch.autograd.grad(value, (z_a, z_b))).split(micro, dim=1)

        for i, (part, seed, gradient) in enumerate(zip(parts, seeds, gradients, strict=True)):
            torch.manual_seed(seed)
            local = fabric.no_backward_sync(network, enabled=i < len(parts) - 1)
            with local, buffers.kept():
                _, again = network(part.flatten(0, 1))
                # its gradient with respect to z is `gradient`, and the scaler of float16 can act on it
                fabric.backward((again * gradient.flatten(0, 1)).sum())
    if bn == "micro":
        buffers.settle(len(parts))
    return value.detach(), torch.cat(h, dim=1).flatten(0, 1), torch.cat(z, dim=1).flatten(0, 1)


class _Buffers:
    """The buffers of a module, such as moving statistics, held still while it runs more often than it should seem to.

    They are written through `.data`: autograd may have noted them for a backward pass that does not read them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.sums: list[Tensor] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Buffers are afterwards what they were before."""
        before = [buffer.clone() for buffer in self.module.buffers()]
        try:
            yield
        finally:
            for buffer, value in zip(self.module.buffers(), before, strict=True):
                buffer.data.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """As `kept`, and what became of them meanwhile is noted for `settle`."""
        with self.kept():
            yield
            after = [buffer.clone() for buffer in self.module.buffers()]
            for value, total in zip(after, self.sums, strict=bool(self.sums)):
                if value.is_floating_point():
                    value += total
            self.sums = after

    def settle(self, times: int) -> None:
        """Each buffer becomes the mean of what was noted `times` times; counts, what they became last."""
        for buffer, total in zip(self.module.buffers(), self.sums, strict=True):
            buffer.data.copy_(total / times if total.is_floating_point() else total)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Batch norms in inference mode; their gains and offsets still learn."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
