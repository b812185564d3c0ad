"""Supervised contrastive loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.losses.similarity import Keys, check, similarities


def supcon(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    keys: Keys | None = None,
    key_labels: Int64[Tensor, " m"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out): the positives of an anchor are its other view
    and both views of all images of its class; the mean over them is outside of the logarithm.

    Mean over the 2n anchors, in nats, without the factor temperature / 0.07 of its authors' code. An image with label
    -1 has its other view alone as positive; where all labels differ the loss is NT-Xent. With several processes
    `key_labels` are the labels of the images of `keys`.
    """
    check(z_a, z_b, temperature)
    logits, positives = similarities(z_a, z_b, temperature, normalize=normalize, keys=keys, offset=offset)
    m = logits.shape[1] // 2
    own = labels.repeat(2)[:, None]
    alike = (own == (labels if key_labels is None else key_labels).repeat(2)) & (own >= 0)
    alike = alike.scatter(1, positives[:, None], True).scatter(1, (positives[:, None] + m) % (2 * m), False)
    close = logits.masked_fill(~alike, -torch.inf)
    others = logits.masked_fill(alike, -torch.inf).logsumexp(1)
    # log-sum over all less the mean positive, as two parts: that of the positives among themselves, which for a lone
    # one is 0 with a gradient of exactly 0, and that of the negatives, small where they are far: see `nt_xent`
    unlike = -close.log_softmax(1).masked_fill(~alike, 0).sum(1) / alike.sum(1)
    return (unlike - F.logsigmoid(close.logsumexp(1) - others)).mean()
