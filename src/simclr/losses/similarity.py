"""Unit-length rows and the similarity matrix of contrastive losses."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from simclr.errors import SettingError

NORM_FLOOR = 1e-6  # minimum norm that a row is divided by; official objective.py: rsqrt(max(sum x^2, 1e-12))

Negatives = Literal["both", "other"]


class Keys(NamedTuple):
    """Embeddings that anchors are compared with: both views of the m images of all processes, in the order of the
    ranks."""

    a: Float[Tensor, "m d"]
    b: Float[Tensor, "m d"]
    offset: int = 0
    """row of the first of this process's images"""
    labels: Int64[Tensor, " m"] | None = None
    """class of each image, for supcon"""


def similarities(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
) -> tuple[Float[Tensor, "anchors candidates"], Int[Tensor, " anchors"]]:
    """Return the scaled similarity of every anchor with every key, -inf with itself, and the column of its positive.

    With `negatives` other, similarities with all keys of the anchor's own view are -inf (paper, App. B.10)."""
    keys = keys or Keys(z_a, z_b)
    n, m = len(z_a), len(keys.a)
    with torch.autocast(z_a.device.type, enabled=False):
        anchors, candidates = full_precision(torch.cat([z_a, z_b])), full_precision(torch.cat([keys.a, keys.b]))
        if normalize:
            anchors, candidates = unit_rows(anchors), unit_rows(candidates)
        logits = anchors @ candidates.T / temperature
    rows = torch.arange(keys.offset, keys.offset + n, device=logits.device)
    anchor_columns, positives = torch.cat([rows, rows + m]), torch.cat([rows + m, rows])
    if negatives == "other":
        view_of_anchor, view_of_key = (torch.arange(2 * k, device=logits.device) // k for k in (n, m))
        logits = logits.masked_fill(view_of_anchor[:, None] == view_of_key, -torch.inf)
    return logits.scatter(1, anchor_columns[:, None], -torch.inf), positives


def unit_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return rows scaled to length 1; a row shorter than 1e-6 is divided by 1e-6 and so stays finite."""
    return F.normalize(x, dim=1, eps=NORM_FLOOR)


def unit_rows_low_memory(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return `unit_rows(x)`, keeping nothing but the result for the backward pass: next to a blockwise loss, what
    autograd would keep is noticeable."""
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


def full_precision(x: Tensor) -> Tensor:
    """Return a tensor as float32, or as it is if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def check_views(z_a: Tensor, z_b: Tensor, temperature: float) -> None:
    """Raise an error unless both views have one shape and the temperature is positive."""
    if z_a.shape != z_b.shape:
        raise ValueError(f"z_a and z_b must have one shape, got {tuple(z_a.shape)} and {tuple(z_b.shape)}")
    if not temperature > 0:
        raise SettingError("temperature", "above 0", temperature)


def split_similarities(
    z_a: Tensor, z_b: Tensor, temperature: float, normalize: bool, negatives: Negatives, keys: Keys | None
) -> tuple[Float[Tensor, "anchors 1"], Float[Tensor, "anchors candidates"], int]:
    """Return each anchor's similarity with its positive, those with its negatives (-inf elsewhere), and the number of
    negatives."""
    check_views(z_a, z_b, temperature)
    logits, positives = similarities(z_a, z_b, temperature, normalize=normalize, negatives=negatives, keys=keys)
    others = logits.scatter(1, positives[:, None], -torch.inf)
    count = (1 if negatives == "other" else 2) * (logits.shape[1] // 2 - 1)
    return logits.gather(1, positives[:, None]), others, count
