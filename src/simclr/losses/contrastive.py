"""Losses that tell an embedding's other view from those of other images; conventions are in `simclr.losses`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr.blockwise import blockwise_nt_xent, needs_float64
from simclr.losses.similarity import Keys, Negatives, check, frugal_unit_rows, full_precision, similarities


def nt_xent(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    block: int | None = None,
    keys: Keys | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Normalised-temperature cross-entropy of each embedding against its other view (Chen et al. 2020, eq. 1).

    `z_a[i]` and `z_b[i]` are two views of image i. Each of the 2n anchors has its other view as the positive
    and, of the 2m keys, all but itself and its positive as negatives; with `negatives` other, those of the other view
    alone. The scalar is the mean over anchors, in nats; ln(2m - 1) is chance. `normalize` compares by cosine, else by
    dot product. `block` is the side, in rows, of the blocks in which similarities are computed and forgotten; 0 holds
    the whole matrix, None does whichever is faster. The result is the same.
    """
    check(z_a, z_b, temperature)
    whole = not normalize or negatives == "other"
    candidates = 2 * len(z_a if keys is None else keys[0])
    if block is None:
        block = 0 if whole else _fastest_block(z_a, candidates)
    if block and whole:  # the exponentials of blocks are scaled by the largest cosine there can be
        raise ValueError("block needs normalize=True and the negatives of both views")
    if z_a.device.type == "mps" and needs_float64(temperature):
        block = 0  # MPS has no float64; the whole matrix is exact without
    with torch.autocast(z_a.device.type, enabled=False):
        if block and candidates > 2:
            anchors = frugal_unit_rows(full_precision(torch.cat([z_a, z_b])))
            if keys is None or keys[0] is z_a:
                return blockwise_nt_xent(anchors, anchors, temperature, block, None)
            others = frugal_unit_rows(full_precision(torch.cat(keys)))
            return blockwise_nt_xent(anchors, others, temperature, block, offset)
        positive, others, _ = _split(z_a, z_b, temperature, normalize, negatives, keys, offset)
        # -log(e^p / (e^p + sum e^n)), with the positive outside the sum: where it dwarfs the negatives its gradient
        # is their share, which "softmax - 1" would round to zero in float32
        return -F.logsigmoid(positive - others.logsumexp(1, keepdim=True)).mean()


def dcl(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Decoupled contrastive loss (Yeh et al. 2022): NT-Xent without the positive in the denominator.

    NT-Xent of an anchor is ln(1 + exp(x)) of its decoupled loss x, which has no lower bound and whose gradient does
    not fade as the positive is told apart; ln(2m - 2) is chance. ValueError where an anchor has no negatives.
    """
    positive, others, count = _split(z_a, z_b, temperature, normalize, negatives, keys, offset)
    if count == 0:
        raise ValueError("dcl needs negatives, and so at least two images")
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
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Logistic loss of single similarities (Chen et al. 2020, Table 2): -ln s(u·v+ / t) - ln s(-u·v- / t), where s is
    the logistic function and t the temperature.

    The paper writes it for one anchor u, positive v+ and negative v-; this is the mean over all of them, in nats.
    `semi_hard` keeps one negative of each anchor, the nearest of those farther away than its positive (section 5.1);
    an anchor without one has its positive term alone.
    """
    positive, others, count = _split(z_a, z_b, temperature, normalize, negatives, keys, offset)
    if semi_hard:
        others, count = _nearest_beyond(positive, others), 1
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
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Triplet loss of cosines (Chen et al. 2020, Table 2): max(u·v- - u·v+ + margin, 0), the mean over all triples of
    an anchor u, its positive v+ and a negative v-.

    `semi_hard` keeps one negative of each anchor, the nearest of those farther away than its positive (Schroff et al.
    2015); an anchor without one within the margin contributes 0. There is no temperature.
    """
    if margin < 0 or (semi_hard and margin == 0):
        raise ValueError(f"margin must be {'above 0 with semi_hard' if semi_hard else 'at least 0'}, got {margin}")
    positive, others, count = _split(z_a, z_b, 1.0, normalize, negatives, keys, offset)
    if semi_hard:
        others, count = _nearest_beyond(positive, others), 1
    return F.relu(others - positive + margin).sum() / (len(others) * max(count, 1))


def _split(
    z_a: Tensor, z_b: Tensor, temperature: float, normalize: bool, negatives: Negatives, keys: Keys | None, offset: int
) -> tuple[Float[Tensor, "anchors 1"], Float[Tensor, "anchors candidates"], int]:
    """Similarity of each anchor with its positive, those with its negatives (-inf elsewhere), and their number."""
    check(z_a, z_b, temperature)
    logits, positives = similarities(
        z_a, z_b, temperature, normalize=normalize, negatives=negatives, keys=keys, offset=offset
    )
    others = logits.scatter(1, positives[:, None], -torch.inf)
    count = (1 if negatives == "other" else 2) * (logits.shape[1] // 2 - 1)
    return logits.gather(1, positives[:, None]), others, count


def _nearest_beyond(
    positive: Float[Tensor, "anchors 1"], others: Float[Tensor, "anchors candidates"]
) -> Float[Tensor, "anchors 1"]:
    """The semi-hard negative of each anchor: the most similar of those less so than its positive; -inf for none."""
    return others.masked_fill(others >= positive, -torch.inf).amax(1, keepdim=True)


def _fastest_block(z: Tensor, candidates: int) -> int:
    """Measured: on a CPU blocks win once the matrix leaves the cache, on a GPU once it is large."""
    threshold, block = (8192, 8192) if z.is_cuda else (256, 512)
    return block if candidates > threshold else 0
