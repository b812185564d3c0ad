"""Whether a classifier's confidence is its accuracy: calibration error, and the temperature that mends most of it."""

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F


def calibration_error(confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean over images of |accuracy - confidence| of their bin, by the
    confidence of the predicted class, in `bins` of equal width."""
    surplus = correct.double() - confidence.double()
    place = (confidence * bins).long().clamp_max(bins - 1)
    return (surplus.new_zeros(bins).scatter_add_(0, place, surplus).abs().sum() / len(correct)).item()


def fit_temperature(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> float:
    """The divisor of the scores with the least cross-entropy on these images, in [0.05, 20].

    The loss is convex in its inverse, so a golden-section search finds it.
    """
    scores = scores.double()
    low, high, golden = 1 / 20, 1 / 0.05, (5**0.5 - 1) / 2

    def loss(inverse: float) -> float:
        return F.cross_entropy(scores * inverse, labels).item()

    while high - low > 1e-4 * low:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return 2 / (low + high)
