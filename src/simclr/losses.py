"""NT-Xent, the contrastive loss of SimCLR, as a pure function of tensors.

Conventions, which differ between code bases: the loss is the mean over the 2N anchors (paper, eq. 1 and
algorithm 1); the official code's value is exactly twice that, which recipes state as `loss_scale: 2`. Logits
are float32 (float64 for float64 input) whatever autocast says, and an anchor is removed from its own
candidates by a mask, never by subtraction, so the loss is exact at low temperature.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from simclr.blockwise import blockwise_nt_xent, needs_float64

CELLS = 1 << 24  # of the matrix of similarities that `contrast_statistics` holds at a time
NORM_FLOOR = 1e-6  # the least norm a row is divided by; official objective.py: rsqrt(max(sum x^2, 1e-12))


def nt_xent(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    block: int | None = None,
    keys: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """Normalised-temperature cross-entropy of each embedding against its other view (Chen et al. 2020, eq. 1).

    `z_a[i]` and `z_b[i]` are two views of image i. Each of the 2n anchors has its other view as the positive
    and, of the 2m keys, all but itself and its positive as negatives. The scalar is the mean over anchors, in
    nats; ln(2m - 1) is chance. `normalize` compares by cosine, else by dot product. `block` is the side, in rows, of
    the blocks in which similarities are computed and forgotten; 0 holds the whole matrix, None does whichever is
    faster. The result is the same.

    With several processes `keys` holds the views of all of them, (m, d) each in the order of the ranks, and
    `offset` is the row of this process's first image among them. If the gathering sums gradients backward, the
    mean of the loss over processes has the value and the gradient of one process with the whole batch.
    """
    _check(z_a, z_b, temperature)
    candidates = 2 * len(z_a if keys is None else keys[0])
    if block is None:
        block = _fastest_block(z_a, candidates) if normalize else 0
    if block and not normalize:
        raise ValueError("block needs normalize=True: its exponentials are scaled by the largest cosine there can be")
    if z_a.device.type == "mps" and needs_float64(temperature):
        block = 0  # MPS has no float64; the whole matrix is exact without
    with torch.autocast(z_a.device.type, enabled=False):
        if block and candidates > 2:
            anchors = _frugal_unit_rows(_full_precision(torch.cat([z_a, z_b])))
            if keys is None or keys[0] is z_a:
                return blockwise_nt_xent(anchors, anchors, temperature, block, None)
            others = _frugal_unit_rows(_full_precision(torch.cat(keys)))
            return blockwise_nt_xent(anchors, others, temperature, block, offset)
        logits, positives = similarities(z_a, z_b, temperature, normalize=normalize, keys=keys, offset=offset)
        positive = logits.gather(1, positives[:, None])
        negatives = logits.scatter(1, positives[:, None], -torch.inf).logsumexp(1, keepdim=True)
        # -log(e^p / (e^p + sum e^n)), with the positive outside the sum: where it dwarfs the negatives its gradient
        # is their share, which "softmax - 1" would round to zero in float32
        return -F.logsigmoid(positive - negatives).mean()


def _fastest_block(z: Tensor, candidates: int) -> int:
    """Measured: on a CPU blocks win once the matrix leaves the cache, on a GPU once it is large."""
    threshold, block = (8192, 8192) if z.is_cuda else (256, 512)
    return block if candidates > threshold else 0


def similarities(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float,
    *,
    normalize: bool = True,
    keys: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]] | None = None,
    offset: int = 0,
) -> tuple[Float[Tensor, "anchors candidates"], Int[Tensor, " anchors"]]:
    """Scaled similarity of every anchor with every key, -inf with itself, and the column of its positive."""
    keys_a, keys_b = (z_a, z_b) if keys is None else keys
    n, m = len(z_a), len(keys_a)
    with torch.autocast(z_a.device.type, enabled=False):
        anchors, candidates = _full_precision(torch.cat([z_a, z_b])), _full_precision(torch.cat([keys_a, keys_b]))
        if normalize:
            anchors, candidates = unit_rows(anchors), unit_rows(candidates)
        logits = anchors @ candidates.T / temperature
    own = torch.arange(offset, offset + n, device=logits.device)
    own, positives = torch.cat([own, own + m]), torch.cat([own + m, own])
    return logits.scatter(1, own[:, None], -torch.inf), positives


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows at length 1; a row shorter than 1e-6 is divided by 1e-6 and so stays finite."""
    return F.normalize(x, dim=1, eps=NORM_FLOOR)


def _frugal_unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """As `unit_rows`, keeping nothing but its result for the backward pass: beside a blockwise loss the rest shows."""
    return _UnitRows.apply(x)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        unit = x / norm.clamp_min(NORM_FLOOR)
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        unit, norm = ctx.saved_tensors
        along = torch.bmm(gradient[:, None], unit[:, :, None])[:, 0]
        along = torch.where(norm > NORM_FLOOR, along, 0.0)  # below, rows are divided by a constant
        return torch.addcmul(gradient, along, unit, value=-1).div_(norm.clamp_min(NORM_FLOOR))


def distillation(
    student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the student's softmax(scores / temperature) to the teacher's, nats, mean over images
    (SimCLRv2, equation 3). The teacher takes no gradient; the loss is not multiplied by temperature squared."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    with torch.autocast(student.device.type, enabled=False):
        wanted = (_full_precision(teacher.detach()) / temperature).softmax(1)
        return -(wanted * (_full_precision(student) / temperature).log_softmax(1)).sum(1).mean()


class ContrastStatistics(NamedTuple):
    """What a batch of embeddings looks like, beside its loss; scalars on the device of the embeddings."""

    top1: Tensor  # share of anchors whose positive is the nearest of the 2m - 1 candidates
    entropy: Tensor  # of the softmax over those candidates, nats
    positive_cosine: Tensor  # mean over pairs
    negative_cosine: Tensor  # mean over all other keys


@torch.no_grad()
def contrast_statistics(
    z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"], temperature: float = 0.1
) -> ContrastStatistics:
    """Contrastive accuracy, entropy and mean cosines over all 2n - 1 candidates.

    The official code reports accuracy and entropy over the n candidates of the other view only: see
    `official_contrast_statistics`.
    """
    n = len(z_a)
    with torch.autocast(z_a.device.type, enabled=False):
        z = unit_rows(_full_precision(torch.cat([z_a, z_b])))
        top1, entropy, positive, negative = z.new_zeros(4).unbind()
        for rows in torch.arange(2 * n, device=z.device).split(max(1, CELLS // (2 * n))):
            own, other = rows[:, None], (rows[:, None] + n) % (2 * n)
            logits = z[rows] @ z.T / temperature
            found = logits.gather(1, other).sum()
            positive += found
            negative += logits.scatter_(1, own, 0.0).sum() - found
            log_p = logits.scatter_(1, own, -torch.inf).log_softmax(1)
            top1 += (logits.argmax(1) == other[:, 0]).sum()
            entropy -= (log_p.exp() * log_p.scatter_(1, own, 0.0)).sum()
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
    """Accuracy and entropy as the official code reports them (metrics.py): from view a to view b only, so
    among m candidates rather than 2m - 1."""
    a, b = _full_precision(z_a), _full_precision(z_b)
    if normalize:
        a, b = unit_rows(a), unit_rows(b)
    logits = a @ b.T / temperature
    p = logits.softmax(1)
    own = torch.arange(offset, offset + len(a), device=logits.device)
    return (logits.argmax(1) == own).to(p.dtype).mean(), -(p * (p + 1e-8).log()).sum(1).mean()


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(z_a: Tensor, z_b: Tensor, temperature: float) -> None:
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a and z_b must have one shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
