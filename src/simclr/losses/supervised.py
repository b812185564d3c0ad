"""Supervised contrastive loss, and the loss of a classifier."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from simclr.losses.similarity import Keys, check_views, similarities

Targets = Int64[Tensor, " n"] | Bool[Tensor, "n c"]  # the class of each image, or the presence of each class


def supcon(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> Float[Tensor, ""]:
    """Return the supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out): the positives of an anchor are its
    other views and all views of the images of its class; the mean over them is outside of the logarithm.

    The result is the mean over the anchors, in nats, without the factor temperature / 0.07 of the authors' code. An
    image with label -1 has only its other views as positives; if all labels differ, the loss of two views is NT-Xent.
    With `more` views, as with a class, each positive has the others in its denominator, unlike in `nt_xent`. `keys`
    must hold labels.
    """
    check_views(z_a, z_b, temperature, more)
    logits, own = similarities(z_a, z_b, temperature, normalize=normalize, keys=keys, more=more)
    anchor_labels = labels.repeat(2 + len(more))[:, None]
    key_labels = (labels if keys is None else keys.labels).repeat(own.shape[1])
    same_class = ((anchor_labels == key_labels) & (anchor_labels >= 0)).scatter(1, own, True)
    same_class &= logits != -torch.inf  # except for the anchor itself
    close = logits.masked_fill(~same_class, -torch.inf)
    excluded = same_class
    if keys is not None and keys.groups is not None:
        excluded = same_class | keys.same_group(len(z_a)).repeat(2 + len(more), own.shape[1])
    others = logits.masked_fill(excluded, -torch.inf).logsumexp(1)
    # The log-sum over all minus the mean positive, as two terms: one of the positives among themselves, which for a
    # single positive is 0 with a gradient of exactly 0, and one of the negatives, which is small if they are far: see
    # `nt_xent`.
    unlike = -close.log_softmax(1).masked_fill(~same_class, 0).sum(1) / same_class.sum(1)
    return (unlike - F.logsigmoid(close.logsumexp(1) - others)).mean()


def classification_loss(scores: Float[Tensor, "b c"], targets: Targets) -> Float[Tensor, ""]:
    """Return the cross-entropy over classes, or, for multi-label images, the mean binary cross-entropy."""
    if targets.ndim == 1:
        return F.cross_entropy(scores, targets)
    return F.binary_cross_entropy_with_logits(scores, targets.to(scores))
