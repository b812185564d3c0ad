"""NT-Xent in blocks: the similarity matrix is never held whole, so memory grows with N, not N squared.

The matrix is computed block by block. The forward pass keeps one number per row, the log-sum over its negatives;
the backward pass computes each block again. Among the embeddings of one process the matrix is symmetric, so a block
above the diagonal serves its rows and, transposed, its columns: half the products.

All exponentials are taken relative to 1 / temperature, which no cosine exceeds. The smallest is then
exp(-2 / temperature): float32 holds it while 2 / temperature < 80, and below that temperature blocks are float64.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simclr.losses.similarity import positive_pairs


def blockwise_nt_xent(
    anchors: Float[Tensor, "a d"],
    keys: Float[Tensor, "k d"],
    temperature: float,
    block: int,
    offset: int | None,
    views: tuple[int, int] = (2, 2),
    groups: Int64[Tensor, " m"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean loss of unit-length anchors and keys, view-major; `views` are their numbers of views.

    `offset` is the row of the first anchor's image among the keys' images; None means that the keys are the anchors.
    `groups` are those of the keys' images, and images of one group are not negatives of each other.
    """
    exact = torch.float64 if needs_float64(temperature) else anchors.dtype
    loss = _Blockwise.apply(anchors.to(exact), keys.to(exact), temperature, block, (offset, groups), views)
    return loss.to(anchors.dtype)


def needs_float64(temperature: float) -> bool:
    """Return whether exp(-2 / temperature) is too small for float32."""
    return 2 / temperature >= 80


_Place = tuple[int | None, Int64[Tensor, " m"] | None]
"""Row of the first anchor's image among the keys' images, None if the keys are the anchors; groups of these images"""


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, a: Tensor, k: Tensor, temperature: float, block: int, place: _Place, views: tuple[int, int]
    ) -> Tensor:
        (offset, _), first = place, place[0] or 0
        symmetric = offset is None
        a_views, k_views = a.view(views[0], -1, a.shape[1]), k.view(views[1], -1, k.shape[1])
        sums = a.new_zeros(len(a))
        for rows, columns, e in _exponentials(a_views, k_views, temperature, block, place):
            sums[rows] += e.sum(1)
            if symmetric and rows != columns:
                sums[columns] += e.sum(0)
        local = k_views[:, first : first + a_views.shape[1]]
        pairs = positive_pairs(*views)
        positive = torch.stack([torch.bmm(a_views[i][:, None], local[j][:, :, None]).flatten() for i, j in pairs])
        positive /= temperature
        negatives = (sums.log() + 1 / temperature).view(views[0], -1)
        ctx.save_for_backward(a, k, positive, negatives)
        ctx.settings = temperature, block, place, views
        return -F.logsigmoid(positive - torch.stack([negatives[i] for i, _ in pairs])).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, k, positive, negatives = ctx.saved_tensors
        temperature, block, place, views = ctx.settings
        symmetric, first = place[0] is None, place[0] or 0
        pairs = positive_pairs(*views)
        fraction = torch.sigmoid(torch.stack([negatives[i] for i, _ in pairs]) - positive)
        fraction *= gradient / (positive.numel() * temperature)
        counts = [sum(i == view for i, _ in pairs) for view in range(views[0])]
        total = torch.stack([part.sum(0) for part in fraction.split(counts)])  # d loss / d log-sum
        weight = (total * (1 / temperature - negatives).exp()).flatten()
        if place[1] is not None:  # an anchor may have no negatives, of which the log-sum is -inf
            weight = weight.nan_to_num(nan=0.0)

        grad_a = torch.zeros_like(a)
        grad_k = grad_a if symmetric else torch.zeros_like(k)
        a_views, grad_a_views = (x.view(views[0], -1, x.shape[1]) for x in (a, grad_a))
        k_views, grad_k_views = (x.view(views[1], -1, x.shape[1]) for x in (k, grad_k))
        local, grad_local = (x[:, first : first + a_views.shape[1]] for x in (k_views, grad_k_views))
        for (i, j), weigh in zip(pairs, fraction[..., None], strict=True):
            grad_a_views[i].addcmul_(weigh, local[j], value=-1)
            grad_local[j].addcmul_(weigh, a_views[i], value=-1)
        for rows, columns, e in _exponentials(a_views, k_views, temperature, block, place):
            if symmetric:
                e *= weight[rows, None] + weight[None, columns]
                grad_a[rows].addmm_(e, k[columns])
                if rows != columns:
                    grad_a[columns].addmm_(e.T, a[rows])
            else:
                e *= weight[rows, None]
                grad_a[rows].addmm_(e, k[columns])
                grad_k[columns].addmm_(e.T, a[rows])
        return grad_a, (None if symmetric else grad_k), None, None, None, None


def _exponentials(
    a_views: Float[Tensor, "v n d"],
    k_views: Float[Tensor, "w m d"],
    temperature: float,
    block: int,
    place: _Place,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield blocks of exp((cosine - 1) / temperature), which are zero for an anchor itself, for its positives and for
    images of its group.

    If the keys are the anchors, only blocks on and above the diagonal are computed. All blocks share the same memory.
    """
    a, k = a_views.flatten(0, 1), k_views.flatten(0, 1)
    n, m = a_views.shape[1], k_views.shape[1]
    (offset, groups), first = place, place[0] or 0
    rows, columns = _slices(len(a_views), n, block), _slices(len(k_views), m, block)
    memory = a.new_empty(min(block, len(a)), min(block, len(k)))
    shift = torch.full((1, 1), -1 / temperature, dtype=a.dtype, device=a.device)
    for r in rows:
        for c in columns:
            if offset is None and c.start < r.start:
                continue
            e = memory[: r.stop - r.start, : c.stop - c.start]
            torch.addmm(shift, a[r], k[c].T, alpha=1 / temperature, out=e)
            e.exp_()
            # difference between the images of anchor and key, both counted among the keys' images
            start = (r.start % n) + first - (c.start % m)
            if -len(e) < start < e.shape[1]:
                e.diagonal(start).zero_()
            if groups is not None:
                down, across = first + r.start % n, c.start % m
                e.masked_fill_(groups[down : down + len(e), None] == groups[across : across + e.shape[1]], 0.0)
            yield r, c, e


def _slices(views: int, images: int, block: int) -> list[slice]:
    """Return ranges of at most `block` rows over all views, none of which spans two views."""
    return [
        slice(view * images + start, view * images + min(start + block, images))
        for view in range(views)
        for start in range(0, images, block)
    ]
