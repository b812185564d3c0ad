"""Approximate nearest neighbours of large collections by faiss, with exact cosines and a measured recall."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.evaluation.neighbours import BLOCK, nearest
from simclr.losses import unit_rows

RECALL = 0.99  # that the number of searched lists is chosen for
SAMPLE = 256  # queries on which it is measured
CANDIDATES = 4  # per neighbour, which are compared exactly
TRAINED = 64  # embeddings per list, on which the lists are fitted


def nearest_approximate(
    bank: Float[Tensor, "m d"], queries: Float[Tensor, "n d"], k: int, *, recall: float = RECALL
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"], float]:
    """Return the largest cosines of each query with rows of the bank, in falling order, the rows, and the recall: the
    fraction of the true k neighbours among those found for up to 256 of the queries, evenly spaced.

    The bank is divided into 4 √m lists and kept as bytes; as many lists are searched as the recall needs, and four
    candidates per neighbour are compared exactly. `nearest` is the exact search.
    """
    import faiss

    k, (count, width), lists = min(k, len(bank)), bank.shape, max(1, round(4 * math.sqrt(len(bank))))
    lists = min(lists, max(1, count // TRAINED))
    coarse = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    trained = np.unique(np.linspace(0, count - 1, min(count, TRAINED * lists)).astype(np.int64))
    index.train(_unit(bank[torch.from_numpy(trained)]))
    for start in range(0, count, BLOCK):
        index.add(_unit(bank[start : start + BLOCK]))
    sample = queries[np.unique(np.linspace(0, len(queries) - 1, min(len(queries), SAMPLE)).astype(np.int64))]
    true = nearest(bank, sample, k)[1]
    for probes in [*(2**i for i in range(int(math.log2(lists)) + 1)), lists]:
        index.nprobe = probes
        rows = _refined(index, bank, sample, k)[1]
        found = (true[:, :, None] == rows[:, None, :]).any(2).double().mean().item()
        if found >= recall:
            break
    return *_refined(index, bank, queries, k), found


def _refined(
    index: Any, bank: Float[Tensor, "m d"], queries: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Return the k best of the candidates that an index finds, by their exact cosines."""
    cosine = torch.empty(len(queries), k)
    row = torch.empty(len(queries), k, dtype=torch.long)  # whole from the start: small pieces would break up the heap
    step = max(1, BLOCK // (CANDIDATES * k))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        block = queries[part].float()
        candidates = torch.from_numpy(index.search(_unit(block), min(CANDIDATES * k, len(bank)))[1])
        vectors = unit_rows(bank[candidates.clamp(min=0).flatten()].float()).unflatten(0, candidates.shape)
        exact = torch.einsum("nd,ncd->nc", unit_rows(block), vectors)
        cosine[part], order = exact.masked_fill(candidates < 0, -torch.inf).topk(k, dim=1)
        row[part] = candidates.gather(1, order)
    if (short := (row < 0).any(1)).any():  # fewer than k in the lists that were searched
        cosine[short], row[short] = nearest(bank, queries[short], k)
    return cosine, row


def _unit(rows: Float[Tensor, "n d"]) -> Float[np.ndarray, "n d"]:
    return np.ascontiguousarray(unit_rows(rows.float()).numpy())
