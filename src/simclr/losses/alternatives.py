"""Alternatives to NT-Xent: decoupled, logistic and triplet losses. Conventions are in `simclr.losses`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr.errors import SettingError
from simclr.losses.similarity import Keys, Negatives, split_similarities


def dcl(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
) -> Float[Tensor, ""]:
    """Return the decoupled contrastive loss (Yeh et al. 2022): NT-Xent without the positive in the denominator.

    NT-Xent of an anchor is ln(1 + exp(x)) of its decoupled loss x, which has no lower bound and whose gradient does
    not vanish as the positive becomes distinguishable; its chance level is ln(2m - 2). Raises SettingError for a
    batch without negatives.
    """
    positive, others, count = split_similarities(z_a, z_b, temperature, normalize, negatives, keys)
    if count == 0:
        raise SettingError("batch", "at least 2 with dcl, since a single image has no negatives", len(z_a))
    return (others.logsumexp(1, keepdim=True) - positive).mean()


def nt_logistic(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    semi_hard: bool = False,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
) -> Float[Tensor, ""]:
    """Return the logistic loss of single similarities (Chen et al. 2020, Table 2), -ln s(u·v+ / t) - ln s(-u·v- / t),
    where s is the logistic function and t the temperature.

    The paper writes it for one anchor u, positive v+ and negative v-; this is the mean over all of them, in nats.
    `semi_hard` keeps one negative of each anchor, the nearest of those farther away than its positive (section 5.1);
    an anchor without such a negative contributes its positive term alone.
    """
    positive, others, count = split_similarities(z_a, z_b, temperature, normalize, negatives, keys)
    if semi_hard:
        others, count = _semi_hard_negatives(positive, others), 1
    apart = -F.logsigmoid(-others).sum() / (len(others) * max(count, 1))
    return apart - F.logsigmoid(positive).mean()


def margin_triplet(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    margin: float = 0.8,
    *,
    semi_hard: bool = False,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
) -> Float[Tensor, ""]:
    """Return the triplet loss of cosines (Chen et al. 2020, Table 2), max(u·v- - u·v+ + margin, 0), as the mean over
    all triples of an anchor u, its positive v+ and a negative v-.

    `semi_hard` keeps one negative of each anchor, the nearest of those farther away than its positive (Schroff et al.
    2015); an anchor without such a negative within the margin contributes 0. There is no temperature.
    """
    if margin < 0 or (semi_hard and margin == 0):
        raise SettingError("margin", "above 0 with semi_hard" if semi_hard else "at least 0", margin)
    positive, others, count = split_similarities(z_a, z_b, 1.0, normalize, negatives, keys)
    if semi_hard:
        others, count = _semi_hard_negatives(positive, others), 1
    return F.relu(others - positive + margin).sum() / (len(others) * max(count, 1))


def _semi_hard_negatives(
    positive: Float[Tensor, "anchors 1"], others: Float[Tensor, "anchors candidates"]
) -> Float[Tensor, "anchors 1"]:
    """Return each anchor's similarity with its semi-hard negative, the most similar one that is less similar than the
    positive; -inf if there is none."""
    return others.masked_fill(others >= positive, -torch.inf).amax(1, keepdim=True)
