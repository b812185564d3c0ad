"""Nearest neighbours and the k-NN classifier."""

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from simclr.losses import unit_rows


@torch.no_grad()
def knn_votes(
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    queries: Float[Tensor, "n d"],
    classes: int,
    *,
    k: int = 200,
    temperature: float = 0.07,
    block: int = 1 << 16,
    chunk_bytes: int = 256 << 20,
) -> Float[Tensor, "n classes"]:
    """Votes of the k nearest rows of the bank by cosine, each weighted by exp(cosine / temperature) (Wu et al. 2018).

    `k` is cut to the size of the bank. The bank, which may lie on another device than the queries, is taken in blocks
    of `block` rows, and queries in chunks whose similarities stay under `chunk_bytes`: a bank of 1M x 2048 needs no
    copy. Weights are float32, relative to the nearest neighbour, so no temperature overflows.
    """
    k = min(k, len(bank))
    queries = unit_rows(queries.float())
    cosine = queries.new_full((len(queries), k), -torch.inf)
    nearest = torch.zeros_like(cosine, dtype=torch.long)
    rows = max(1, chunk_bytes // (4 * min(block, max(len(bank), 1))))
    for start in range(0, len(bank), block):
        part = unit_rows(bank[start : start + block].to(queries.device).float())
        for i in range(0, len(queries), rows):
            chunk = slice(i, i + rows)
            found, at = (queries[chunk] @ part.T).topk(min(k, len(part)), dim=1)
            cosine[chunk], order = torch.cat([cosine[chunk], found], 1).topk(k, dim=1)
            nearest[chunk] = torch.cat([nearest[chunk], at + start], 1).gather(1, order)
    weights = ((cosine - cosine[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(queries), classes)
    return votes.scatter_add_(1, bank_labels.to(queries.device)[nearest], weights)


def neighbours(
    bank: Float[Tensor, "m d"], queries: Float[Tensor, "n d"], k: int, *, exclude: Int64[Tensor, " n"] | None = None
) -> Int[Tensor, "n k"]:
    """Rows of the bank nearest to each query by cosine, nearest first; `exclude` names a row to leave out of each
    query's list: the query itself, where it stands in the bank."""
    cosine = unit_rows(queries.float()) @ unit_rows(bank.float()).T
    if exclude is not None:
        cosine.scatter_(1, exclude[:, None], -torch.inf)
    return cosine.topk(min(k, len(bank)), dim=1).indices
