"""NT-Xent, the contrastive loss of SimCLR; conventions are in `simclr.losses`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simclr.errors import SettingError
from simclr.losses.blockwise import blockwise_nt_xent, needs_float64
from simclr.losses.similarity import (
    Keys,
    Negatives,
    check_views,
    full_precision,
    split_similarities,
    unit_rows_low_memory,
)


def nt_xent(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    block: int | None = None,
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> Float[Tensor, ""]:
    """Return the normalised-temperature cross-entropy of each embedding and its other view (Chen et al. 2020, eq. 1).

    `z_a[i]` and `z_b[i]` are two views of image i. Each of the 2n anchors has its other view as the positive
    and, of the 2m keys, all but itself and its positive as negatives; with `negatives` other, only those of the other
    view. The result is the mean over anchors, in nats; its chance level is ln(2m - 1). `normalize` compares by cosine,
    otherwise by dot product. `block` is the side, in rows, of the blocks in which similarities are computed and
    discarded; 0 holds the whole matrix and None chooses the faster way. The result does not depend on it.

    With `more` views of the images, K in all, the loss is the mean over images and over the ordered pairs of an
    anchor's view i and another view j of

        -ln( exp(s_ij) / (exp(s_ij) + sum of exp(s_in) over the negatives n) )

    where s are similarities over temperature. The negatives are the K (m - 1) views of the other images; the anchor's
    other positives are no candidates of the pair. The chance level is ln(1 + K (m - 1)). If `keys` hold only the first
    V views, j is one of these, the negatives are the V (m - 1) keys of other images, and other views are anchors only.
    If they hold groups, images of an anchor's group are not among its negatives.
    """
    views = (z_a, z_b, *more)
    check_views(z_a, z_b, temperature, more)
    whole = not normalize or negatives == "other"
    all_keys = keys or Keys.of(views)
    candidates = len(all_keys.views) * len(all_keys.a)
    if block is None:
        block = 0 if whole else _fastest_block(z_a, candidates)
    if block and whole:  # the exponentials of blocks are scaled by the maximum of a cosine
        raise SettingError("block", "0 unless normalize is true and negatives are of both views", block)
    if z_a.device.type == "mps" and needs_float64(temperature):
        block = 0  # MPS has no float64; the whole matrix is exact without
    with torch.autocast(z_a.device.type, enabled=False):
        if block and len(all_keys.a) > 1:
            counts = len(views), len(all_keys.views)
            anchors = unit_rows_low_memory(full_precision(torch.cat(views)))
            groups = all_keys.groups
            if all_keys.a is z_a and counts[0] == counts[1]:
                return blockwise_nt_xent(anchors, anchors, temperature, block, None, counts, groups)
            others = unit_rows_low_memory(full_precision(torch.cat(all_keys.views)))
            return blockwise_nt_xent(anchors, others, temperature, block, all_keys.offset, counts, groups)
        split = split_similarities(views, temperature, normalize, negatives, keys)
        # -log(e^p / (e^p + sum e^n)), with the positive outside the sum: where it dwarfs the negatives, its gradient
        # is their fraction of the sum, which "softmax - 1" would round to zero in float32
        return -F.logsigmoid(split.positive - split.of_pairs(split.others.logsumexp(2))).mean()


def _fastest_block(z: Tensor, candidates: int) -> int:
    """Return the fastest block side as measured: on a CPU blocks win once the matrix leaves the cache, on a GPU once it
    is large."""
    threshold, block = (4096, 8192) if z.is_cuda else (256, 512)
    return block if candidates > threshold else 0
