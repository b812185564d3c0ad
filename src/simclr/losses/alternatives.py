"""Alternatives to NT-Xent: decoupled, logistic and triplet losses. Conventions are in `simclr.losses`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr.errors import SettingError
from simclr.losses.similarity import Keys, Negatives, Split, split_similarities


def dcl(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> Float[Tensor, ""]:
    """Return the decoupled contrastive loss (Yeh et al. 2022): NT-Xent without the positive in the denominator.

    NT-Xent of an anchor is ln(1 + exp(x)) of its decoupled loss x, which has no lower bound and whose gradient does
    not vanish as the positive becomes distinguishable; its chance level is ln(2m - 2). With `more` views it is the mean
    over the pairs of `nt_xent`. Raises SettingError for a batch without negatives.
    """
    split = split_similarities((z_a, z_b, *more), temperature, normalize, negatives, keys)
    if isinstance(split.count, int):
        if split.count == 0:
            raise SettingError("batch", "at least 2 with dcl, since a single image has no negatives", len(z_a))
        return (split.of_pairs(split.others.logsumexp(2)) - split.positive).mean()
    has_negatives = split.count > 0  # others contribute 0; they are filled, since -inf - -inf has no gradient
    others = split.others.masked_fill(~has_negatives[:, None], 0.0)
    return torch.where(has_negatives, split.of_pairs(others.logsumexp(2)) - split.positive, 0.0).mean()


def nt_logistic(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    semi_hard: bool = False,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> Float[Tensor, ""]:
    """Return the logistic loss of single similarities (Chen et al. 2020, Table 2), -ln s(u·v+ / t) - ln s(-u·v- / t),
    where s is the logistic function and t the temperature.

    The paper writes it for one anchor u, positive v+ and negative v-; this is the mean over all of them, in nats.
    `semi_hard` keeps one negative of each anchor, the nearest of those farther away than its positive (section 5.1);
    an anchor without such a negative contributes its positive term alone. With `more` views it is the mean over the
    pairs of `nt_xent`.
    """
    split = split_similarities((z_a, z_b, *more), temperature, normalize, negatives, keys)
    others, total = _semi_hard_negatives(split) if semi_hard else (split.of_pairs(split.others), split.total)
    apart = -F.logsigmoid(-others).sum() / total
    return apart - F.logsigmoid(split.positive).mean()


def margin_triplet(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    margin: float = 0.8,
    *,
    semi_hard: bool = False,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> Float[Tensor, ""]:
    """Return the triplet loss of cosines (Chen et al. 2020, Table 2), max(u·v- - u·v+ + margin, 0), as the mean over
    all triples of an anchor u, its positive v+ and a negative v-.

    `semi_hard` keeps one negative of each anchor, the nearest of those farther away than its positive (Schroff et al.
    2015); an anchor without such a negative within the margin contributes 0. There is no temperature. With `more` views
    it is the mean over the pairs of `nt_xent`.
    """
    if margin < 0 or (semi_hard and margin == 0):
        raise SettingError("margin", "above 0 with semi_hard" if semi_hard else "at least 0", margin)
    split = split_similarities((z_a, z_b, *more), 1.0, normalize, negatives, keys)
    others, total = _semi_hard_negatives(split) if semi_hard else (split.of_pairs(split.others), split.total)
    return F.relu(others - split.positive[..., None] + margin).sum() / total


def _semi_hard_negatives(split: Split) -> tuple[Float[Tensor, "pairs n 1"], int]:
    """Return the similarity of each pair's anchor with its semi-hard negative, the most similar one that is less
    similar than the positive, -inf if there is none; and their number, one for each pair and image."""
    others = split.of_pairs(split.others)
    return others.masked_fill(others >= split.positive[..., None], -torch.inf).amax(
        2, keepdim=True
    ), split.positive.numel()
