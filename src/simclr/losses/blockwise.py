"""NT-Xent in blocks: the similarity matrix is never held whole, so memory grows with N, not N squared.

The matrix is computed block by block. The forward pass keeps one number per row, the log-sum over its negatives;
the backward pass computes each block again. Among the embeddings of one process the matrix is symmetric, so a block
above the diagonal serves its rows and, transposed, its columns: half the products.

All exponentials are taken relative to 1 / temperature, which no cosine exceeds. The smallest is then
exp(-2 / temperature): float32 holds it while 2 / temperature < 80, and below that temperature blocks are float64.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def blockwise_nt_xent(
    anchors: Float[Tensor, "a d"],
    keys: Float[Tensor, "k d"],
    temperature: float,
    block: int,
    offset: int | None,
) -> Float[Tensor, ""]:
    """Return the mean loss of unit-length anchors (two views of n images, view-major) and unit-length keys.

    `offset` is the row of the first anchor's image among the keys' images; None means that the keys are the anchors.
    """
    exact = torch.float64 if needs_float64(temperature) else anchors.dtype
    loss = _Blockwise.apply(anchors.to(exact), keys.to(exact), temperature, block, offset)
    return loss.to(anchors.dtype)


def needs_float64(temperature: float) -> bool:
    """Return whether exp(-2 / temperature) is too small for float32."""
    return 2 / temperature >= 80


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, k: Tensor, temperature: float, block: int, offset: int | None) -> Tensor:
        symmetric = offset is None
        first = offset or 0
        n, m = len(a) // 2, len(k) // 2
        sums = a.new_zeros(len(a))
        for rows, columns, e in _exponentials(a, k, temperature, block, first, symmetric):
            sums[rows] += e.sum(1)
            if symmetric and rows != columns:
                sums[columns] += e.sum(0)
        local = k.view(2, m, -1)[:, first : first + n]
        pairs = zip(a.view(2, n, -1), (local[1], local[0]), strict=True)
        positive = torch.cat([torch.bmm(x[:, None], y[:, :, None]).flatten() for x, y in pairs]) / temperature
        negatives = sums.log() + 1 / temperature
        ctx.save_for_backward(a, k, positive, negatives)
        ctx.settings = temperature, block, first, symmetric
        return -F.logsigmoid(positive - negatives).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, k, positive, negatives = ctx.saved_tensors
        temperature, block, first, symmetric = ctx.settings
        n, m = len(a) // 2, len(k) // 2
        fraction = torch.sigmoid(negatives - positive) * (gradient / (len(a) * temperature))  # d loss / d log-sum
        weight = fraction * (1 / temperature - negatives).exp()

        grad_a = torch.zeros_like(a)
        grad_k = grad_a if symmetric else torch.zeros_like(k)
        local, grad_local = (x.view(2, m, -1)[:, first : first + n] for x in (k, grad_k))
        for v, other, weigh in ((0, 1, fraction[:n, None]), (1, 0, fraction[n:, None])):
            grad_a.view(2, n, -1)[v].addcmul_(weigh, local[other], value=-1)
            grad_local[other].addcmul_(weigh, a.view(2, n, -1)[v], value=-1)
        for rows, columns, e in _exponentials(a, k, temperature, block, first, symmetric):
            if symmetric:
                e *= weight[rows, None] + weight[None, columns]
                grad_a[rows].addmm_(e, k[columns])
                if rows != columns:
                    grad_a[columns].addmm_(e.T, a[rows])
            else:
                e *= weight[rows, None]
                grad_a[rows].addmm_(e, k[columns])
                grad_k[columns].addmm_(e.T, a[rows])
        return grad_a, (None if symmetric else grad_k), None, None, None


def _exponentials(
    a: Tensor, k: Tensor, temperature: float, block: int, first: int, symmetric: bool
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield blocks of exp((cosine - 1) / temperature), which are zero for an anchor itself and for its positive.

    If symmetric, only blocks on and above the diagonal are computed. All blocks share the same memory.
    """
    rows, columns = _slices(len(a) // 2, block), _slices(len(k) // 2, block)
    memory = a.new_empty(min(block, len(a)), min(block, len(k)))
    shift = torch.full((1, 1), -1 / temperature, dtype=a.dtype, device=a.device)
    n, m = len(a) // 2, len(k) // 2
    for r in rows:
        for c in columns:
            if symmetric and c.start < r.start:
                continue
            e = memory[: r.stop - r.start, : c.stop - c.start]
            torch.addmm(shift, a[r], k[c].T, alpha=1 / temperature, out=e)
            e.exp_()
            # difference between the images of anchor and key, both counted among the keys' images
            start = (r.start % n) + first - (c.start % m)
            if -len(e) < start < e.shape[1]:
                e.diagonal(start).zero_()
            yield r, c, e


def _slices(images: int, block: int) -> list[slice]:
    """Return ranges of at most `block` rows over two views, none of which spans both views."""
    return [
        slice(view * images + start, view * images + min(start + block, images))
        for view in (0, 1)
        for start in range(0, images, block)
    ]
