"""Global contrastive loss: negatives of all images by moving averages. Conventions are in `simclr.losses`."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from simclr.errors import SettingError
from simclr.losses.similarity import Keys, split_similarities

UNSEEN = torch.finfo(torch.float32).min  # average of an image that has not been seen: log 0, as a finite number


def sogclr(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    averages: Float[Tensor, " n"] | None = None,
    gamma: float = 0.9,
    normalize: bool = True,
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> Float[Tensor, ""]:
    """Return the global contrastive loss (SogCLR, Yuan et al. 2022): `dcl` whose denominator is an average over the
    batches in which an image was seen, so that its negatives are not those of a small batch alone.

    Let g be the mean of exp(s) over the similarities s of an anchor with its negatives, over temperature, and u the
    average of its image. With v = (1 - gamma) u + gamma g, or v = g for an image that has not been seen, an anchor with
    positive p contributes -p + ln(count v), count being the number of negatives. The gradient takes v for a constant
    divisor: -dp + dg / v. The new u is the mean of v over the views.

    `averages` are ln u of the images, `UNSEEN` for the first time, and are updated in place, as a batch norm's
    statistics are; without them every image is new. With gamma 1 or without averages, value and gradient are those of
    `dcl`. With `more` views it is the mean over the pairs of `nt_xent`. Raises SettingError for a batch without
    negatives.
    """
    if keys is not None and keys.groups is not None:
        raise SettingError("loss", "another one than sogclr for images with groups", "sogclr")
    split = split_similarities((z_a, z_b, *more), temperature, normalize, "both", keys)
    if split.count == 0:
        raise SettingError("batch", "at least 2 with sogclr, since a single image has no negatives", len(z_a))
    log_g = split.others.logsumexp(2) - math.log(split.count)
    log_v = log_g.detach()
    if averages is not None:
        weights = log_v.new_tensor([1 - gamma, gamma]).log()
        log_v = torch.where(averages > UNSEEN, torch.logaddexp(averages + weights[0], log_v + weights[1]), log_v)
        averages.copy_(log_v.logsumexp(0) - math.log(len(log_v)))
    denominator = log_v + (log_g.detach() - log_v).exp() * (log_g - log_g.detach())  # ln v, with the gradient dg / v
    return (split.of_pairs(denominator) - split.positive).mean() + math.log(split.count)
