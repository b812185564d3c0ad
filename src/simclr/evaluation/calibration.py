"""Calibration of a classifier: expected calibration error and temperature scaling."""

import math

from jaxtyping import Bool, Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

LIMIT = 20  # temperatures from 1 / LIMIT to LIMIT


def calibration_error(confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017): the mean over images of |accuracy - confidence| of their
    bin, by the confidence of the predicted class, in `bins` of equal width."""
    surplus = correct.double() - confidence.double()
    indices = (confidence * bins).long().clamp_max(bins - 1)
    return (surplus.new_zeros(bins).scatter_add_(0, indices, surplus).abs().sum() / len(correct)).item()


def fit_temperature(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> float:
    """Return the divisor of the scores with the lowest cross-entropy on these images, in [0.05, 20].

    The loss is convex in the inverse of the temperature, over whose logarithm it has one minimum.
    """
    scores, labels = scores.double().cpu(), labels.cpu()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(scores / math.exp(log_temperature), labels).item()

    bounds = (-math.log(LIMIT), math.log(LIMIT))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)
