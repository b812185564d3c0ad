"""What a contrastive loss remembers from step to step: averaged weights, keys of past batches, averages of images.

These are modules inside the model, so checkpoints hold them. Every process holds the same.
"""

import copy
from collections.abc import Sequence
from itertools import compress

import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.losses import Keys
from simclr.losses.global_contrast import UNSEEN
from simclr.models.head import EncoderWithHead
from simclr.training.gathering import gather
from simclr.training.gradcache import MicroBatches, embed


class Momentum(nn.Module):
    """Exponential moving average of encoder and head, and the queue of its keys (He et al. 2020; SimCLRv2, section 2).

    After a step of the optimizer each weight w becomes decay * w + (1 - decay) * (the trained weight), and so do the
    moving statistics of batch norms. Keys are made with the statistics of the batch and leave the moving ones alone.
    """

    queue: Float[Tensor, "views images k"]
    """keys of past images, the oldest ones replaced first"""
    groups: Int64[Tensor, " images"]
    """groups of these images, if images have groups"""

    def __init__(
        self, encoder: nn.Module, head: nn.Module, decay: float, queue: tuple[int, int, int], grouped: bool = False
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(EncoderWithHead(encoder, head)).requires_grad_(False)
        self.decay = decay
        self.register_buffer("queue", torch.zeros(queue))
        if grouped:
            self.register_buffer("groups", torch.zeros(queue[1], dtype=torch.int64))

    def attach(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        """Follow `network` after each step of its optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.follow(network))

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move the average towards the weights and moving statistics of `network`; its counters are copied."""
        ours, theirs = ([*module.parameters(), *module.buffers()] for module in (self.network, network))
        averaged = [x.is_floating_point() for x in ours]
        torch._foreach_lerp_([*compress(ours, averaged)], [*compress(theirs, averaged)], 1 - self.decay)
        torch._foreach_copy_(*([x for x in tensors if not x.is_floating_point()] for tensors in (ours, theirs)))

    def keys(
        self,
        fabric: Fabric,
        views: Sequence[Float[Tensor, "_ b c _ _"]],
        micro: MicroBatches,
        step: int,
        groups: Int64[Tensor, " m"] | None = None,
    ) -> Keys:
        """Return the keys of all processes' views, followed by those of the queue, which fills in the first steps.
        `views` has those of one size together; crops of a smaller size are left out if none of them is a key. `groups`
        are those of all processes' images."""
        keyed = views[:1] if len(views[0]) == len(self.queue) else views
        with fabric.autocast():
            z = embed(self.network, keyed, micro).to(self.queue.dtype)
        batch = torch.stack([gather(view) for view in z])
        past = self.queue[:, : step * batch.shape[1]]
        keys = Keys.of(torch.cat([batch, past], dim=1), fabric.global_rank * z.shape[1])
        return keys if groups is None else keys._replace(groups=torch.cat([groups, self.groups[: past.shape[1]]]))

    def push(self, keys: Keys, batch: int, step: int) -> None:
        """Store the keys of a batch, which come first in `keys`, in place of the oldest."""
        start = step * batch % self.queue.shape[1]
        self.queue[:, start : start + batch] = torch.stack([view[:batch] for view in keys.views])
        if keys.groups is not None:
            self.groups[start : start + batch] = keys.groups[:batch]


class ImageAverages(nn.Module):
    """Moving average of each training image, for the global contrastive loss."""

    values: Float[Tensor, " images"]
    """logarithms of the averages, see `sogclr`"""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((images,), UNSEEN))

    def write(self, rows: Int64[Tensor, " b"], values: Float[Tensor, " b"]) -> None:
        """Store the values of all processes' images."""
        rows, values = gather(rows), gather(values)
        self.values[rows] = UNSEEN
        # an image may be there twice, in place of an unreadable one: the larger value is the same on every process
        self.values.scatter_reduce_(0, rows, values, "amax")
