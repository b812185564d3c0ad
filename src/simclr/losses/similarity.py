"""Unit-length rows and the similarity matrix of contrastive losses."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from simclr.errors import SettingError

NORM_FLOOR = 1e-6  # minimum norm that a row is divided by; official objective.py: rsqrt(max(sum x^2, 1e-12))

Negatives = Literal["both", "other"]


class Keys(NamedTuple):
    """Embeddings that anchors are compared with: views of the m images of all processes, in the order of the ranks.

    They are all views of the images, or the first ones of them; the other views are then anchors only.
    """

    a: Float[Tensor, "m d"]
    b: Float[Tensor, "m d"]
    offset: int = 0
    """row of the first of this process's images"""
    labels: Int64[Tensor, " m"] | None = None
    """class of each image, for supcon"""
    more: tuple[Float[Tensor, "m d"], ...] = ()
    """third and further views"""
    groups: Int64[Tensor, " m"] | None = None
    """group of each image; images of one group are never negatives of each other"""

    @classmethod
    def of(cls, views: Iterable[Tensor], offset: int = 0, labels: Tensor | None = None) -> "Keys":
        """Return the keys of two or more views."""
        a, b, *more = views
        return cls(a, b, offset, labels, tuple(more))

    def same_group(self, images: int) -> Bool[Tensor, "images m"]:
        """Return for each of this process's images which of all images are of its group, itself included."""
        return self.groups[self.offset : self.offset + images, None] == self.groups

    @property
    def views(self) -> tuple[Float[Tensor, "m d"], ...]:
        """All views."""
        return self.a, self.b, *self.more


def similarities(
    z_a: Float[Tensor, "n d"],
    z_b: Float[Tensor, "n d"],
    temperature: float,
    *,
    normalize: bool = True,
    negatives: Negatives = "both",
    keys: Keys | None = None,
    more: Sequence[Float[Tensor, "n d"]] = (),
) -> tuple[Float[Tensor, "anchors candidates"], Int[Tensor, "anchors key_views"]]:
    """Return the scaled similarity of every anchor with every key, -inf with itself, and the columns of the keys that
    are views of the anchor's image, itself included.

    With `negatives` other, similarities with all keys of the anchor's own view are -inf (paper, App. B.10)."""
    views, keys = (z_a, z_b, *more), keys or Keys.of((z_a, z_b, *more))
    n, m = len(z_a), len(keys.a)
    with torch.autocast(z_a.device.type, enabled=False):
        anchors, candidates = full_precision(torch.cat(views)), full_precision(torch.cat(keys.views))
        if normalize:
            anchors, candidates = unit_rows(anchors), unit_rows(candidates)
        logits = anchors @ candidates.T / temperature
    rows = torch.arange(keys.offset, keys.offset + n, device=logits.device)
    columns = rows[:, None] + m * torch.arange(len(keys.views), device=logits.device)
    if negatives == "other":
        view_of_anchor = torch.arange(len(anchors), device=logits.device) // n
        view_of_key = torch.arange(len(candidates), device=logits.device) // m
        logits = logits.masked_fill(view_of_anchor[:, None] == view_of_key, -torch.inf)
    itself = columns.T.flatten()  # of the anchors of the first views, which are keys
    keyed = torch.arange(len(itself), device=logits.device)
    logits = logits.index_put((keyed, itself), logits.new_full((), -torch.inf))
    return logits, columns.repeat(len(views), 1)


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


def check_views(z_a: Tensor, z_b: Tensor, temperature: float, more: Sequence[Tensor] = ()) -> None:
    """Raise an error unless all views have one shape and the temperature is positive."""
    if any(z.shape != z_a.shape for z in (z_b, *more)):
        raise ValueError(f"views must have one shape, got {[tuple(z.shape) for z in (z_a, z_b, *more)]}")
    if not temperature > 0:
        raise SettingError("temperature", "above 0", temperature)


def positive_pairs(views: int, key_views: int) -> list[tuple[int, int]]:
    """Return all ordered pairs of an anchor's view and its positive's, one of the first `key_views`."""
    return [(anchor, positive) for anchor in range(views) for positive in range(key_views) if anchor != positive]


class Split(NamedTuple):
    """Similarities of anchors with their positives and with their negatives."""

    positive: Float[Tensor, "pairs n"]
    """of each pair of views, for each image"""
    others: Float[Tensor, "views n candidates"]
    """of each anchor with its negatives, -inf elsewhere"""
    pairs: list[tuple[int, int]]
    """view of the anchor and view of the positive"""
    count: int | Int64[Tensor, " n"]
    """number of negatives of an anchor, of those of each image if there are groups"""

    @property
    def total(self) -> int | Int64[Tensor, ""]:
        """Return the number of negatives over all pairs and images, at least 1 for each or, with groups, in all."""
        if isinstance(self.count, int):
            return self.positive.numel() * max(self.count, 1)
        return (len(self.pairs) * self.count.sum()).clamp(min=1)

    def of_pairs(self, x: Shaped[Tensor, "views *rest"]) -> Shaped[Tensor, "pairs *rest"]:
        """Return what `x` holds of the anchor's view, for each pair."""
        if len(x) == len(self.pairs):  # two views: the first pair has the first one as anchor
            return x
        rows = x.unbind()
        return torch.stack([rows[anchor] for anchor, _ in self.pairs])


def split_similarities(
    views: Sequence[Tensor], temperature: float, normalize: bool, negatives: Negatives, keys: Keys | None
) -> Split:
    """Return the similarities of the anchors in `views` with their positives and negatives."""
    z_a, z_b, *more = views
    check_views(z_a, z_b, temperature, more)
    logits, own = similarities(z_a, z_b, temperature, normalize=normalize, negatives=negatives, keys=keys, more=more)
    key_views = own.shape[1]
    pairs = positive_pairs(len(views), key_views)
    close = [of_view.unbind(1) for of_view in logits.gather(1, own).chunk(len(views))]
    positive = torch.stack([close[anchor][other] for anchor, other in pairs])
    others = logits.scatter(1, own, -torch.inf).view(len(views), -1, logits.shape[1])
    count = (key_views - (negatives == "other")) * (logits.shape[1] // key_views - 1)
    if keys is not None and keys.groups is not None:
        same = keys.same_group(len(z_a))
        others = others.masked_fill(same.repeat(1, key_views), -torch.inf)
        count = (key_views - (negatives == "other")) * (~same).sum(1)
    return Split(positive, others, pairs, count)
