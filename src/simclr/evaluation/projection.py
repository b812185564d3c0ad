"""Projections of embeddings to a few dimensions."""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

BLOCK = 1 << 16  # rows that are converted to float64 at a time


@torch.no_grad()
def pca(
    features: Float[Tensor, "n d"], dimensions: int = 2
) -> tuple[Float64[np.ndarray, "n p"], Float64[np.ndarray, " p"]]:
    """Return the principal components of centred embeddings, and the fraction of the variance that each explains.

    The largest loading of each component is positive, so that a result does not depend on the solver. The covariance is
    summed up in float64 over blocks of rows.
    """
    blocks = [features[start : start + BLOCK] for start in range(0, len(features), BLOCK)]
    mean = sum(block.double().sum(0) for block in blocks) / len(features)
    covariance = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in blocks:
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred)
    values, vectors = torch.linalg.eigh(covariance)
    axes = vectors.flip(1)[:, :dimensions]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    explained = values.flip(0).clamp_min(0)[:dimensions] / values.sum().clamp_min(1e-300)
    return torch.cat([(block.double() - mean) @ axes for block in blocks]).numpy(), explained.numpy()
