"""Statistics of a batch of embeddings."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simclr.losses.similarity import full_precision, unit_rows

CELLS = 1 << 24  # maximum number of similarities that `contrast_statistics` holds at a time


class ContrastStatistics(NamedTuple):
    """Contrastive accuracy, entropy and mean cosines of a batch; scalars on the device of the embeddings."""

    top1: Tensor  # fraction of anchors whose positive is the nearest of the 2m - 1 candidates
    entropy: Tensor  # of the softmax over those candidates, nats
    positive_cosine: Tensor  # mean over pairs
    negative_cosine: Tensor  # mean over all other keys


@torch.no_grad()
def contrast_statistics(
    z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"], temperature: float = 0.1
) -> ContrastStatistics:
    """Return contrastive accuracy, entropy and mean cosines over all 2n - 1 candidates.

    The official code reports accuracy and entropy over the n candidates of the other view only: see
    `official_contrast_statistics`.
    """
    n = len(z_a)
    with torch.autocast(z_a.device.type, enabled=False):
        z = unit_rows(full_precision(torch.cat([z_a, z_b])))
        top1, entropy, positive, negative = z.new_zeros(4).unbind()
        for rows in torch.arange(2 * n, device=z.device).split(max(1, CELLS // (2 * n))):
            itself, other = rows[:, None], (rows[:, None] + n) % (2 * n)
            logits = z[rows] @ z.T / temperature
            matched = logits.gather(1, other).sum()
            positive += matched
            negative += logits.scatter_(1, itself, 0.0).sum() - matched
            log_p = logits.scatter_(1, itself, -torch.inf).log_softmax(1)
            top1 += (logits.argmax(1) == other[:, 0]).sum()
            entropy -= (log_p.exp() * log_p.scatter_(1, itself, 0.0)).sum()
    return ContrastStatistics(
        top1=top1 / (2 * n),
        entropy=entropy / (2 * n),
        positive_cosine=positive / (2 * n) * temperature,
        negative_cosine=negative / (2 * n * max(2 * n - 2, 1)) * temperature,
    )


@torch.no_grad()
def official_contrast_statistics(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "m d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    offset: int = 0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return accuracy and entropy as the official code reports them (metrics.py): from view a to view b only, and so
    among m candidates rather than 2m - 1."""
    a, b = full_precision(z_a), full_precision(z_b)
    if normalize:
        a, b = unit_rows(a), unit_rows(b)
    logits = a @ b.T / temperature
    p = logits.softmax(1)
    positives = torch.arange(offset, offset + len(a), device=logits.device)
    return (logits.argmax(1) == positives).to(p.dtype).mean(), -(p * (p + 1e-8).log()).sum(1).mean()
