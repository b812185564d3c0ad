"""Nearest neighbours and the k-NN classifier."""

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from simclr.losses import unit_rows

BLOCK = 1 << 16  # rows of the bank at a time
CHUNK_BYTES = 256 << 20  # largest size of the similarities that are held at a time


@torch.no_grad()
def nearest(
    bank: Float[Tensor, "m d"],
    queries: Float[Tensor, "n d"],
    k: int,
    *,
    exclude: Int64[Tensor, " n"] | None = None,
    block: int = BLOCK,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Return the k largest cosines of each query with rows of the bank, in falling order, and the rows.

    `k` is limited to the size of the bank. `exclude` names a row of the bank for each query, -1 for none, whose cosine
    counts as -inf. The bank, which may be on another device than the queries, is processed in blocks of `block` rows,
    and queries in chunks whose similarities stay below `chunk_bytes`: a bank of 1M x 2048 needs no copy.
    """
    k = min(k, len(bank))
    queries = unit_rows(queries.float())
    cosine = queries.new_full((len(queries), k), -torch.inf)
    indices = torch.zeros_like(cosine, dtype=torch.long)
    rows = max(1, chunk_bytes // (4 * min(block, max(len(bank), 1))))
    for start in range(0, len(bank), block):
        part = unit_rows(bank[start : start + block].to(queries.device).float())
        for i in range(0, len(queries), rows):
            chunk = slice(i, i + rows)
            similarity = queries[chunk] @ part.T
            if exclude is not None:
                at = exclude[chunk].to(queries.device) - start
                inside = ((at >= 0) & (at < len(part))).nonzero()[:, 0]
                similarity[inside, at[inside]] = -torch.inf
            values, at = similarity.topk(min(k, len(part)), dim=1)
            cosine[chunk], order = torch.cat([cosine[chunk], values], 1).topk(k, dim=1)
            indices[chunk] = torch.cat([indices[chunk], at + start], 1).gather(1, order)
    return cosine, indices


@torch.no_grad()
def knn_votes(
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    queries: Float[Tensor, "n d"],
    classes: int,
    *,
    k: int = 200,
    temperature: float = 0.07,
    block: int = BLOCK,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, "n classes"]:
    """Return the votes of the k nearest rows of the bank by cosine, each weighted by exp(cosine / temperature) (Wu et
    al. 2018); see `nearest`.

    Weights are float32, relative to the nearest neighbour, so no temperature overflows.
    """
    cosine, indices = nearest(bank, queries, k, block=block, chunk_bytes=chunk_bytes)
    weights = ((cosine - cosine[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(cosine), classes)
    return votes.scatter_add_(1, bank_labels.to(cosine.device)[indices], weights)


def neighbours(
    bank: Float[Tensor, "m d"], queries: Float[Tensor, "n d"], k: int, *, exclude: Int64[Tensor, " n"] | None = None
) -> Int[Tensor, "n k"]:
    """Return the rows of the bank nearest to each query by cosine, nearest first; `exclude` names the row of each query
    that is left out, such as the query itself."""
    return nearest(bank, queries, min(k, len(bank) - (exclude is not None)), exclude=exclude)[1]
