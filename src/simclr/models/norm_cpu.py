"""Batch normalisation of float32 tensors on a CPU: statistics to float32 accuracy for channels-last tensors.

torch's own kernels for this layout add up a whole channel in one float32 number: measured at 256 x 64 x 32 x 32, their
output is wrong by 1e-5 and their gradient by 2e-5, a hundred times more than for contiguous tensors. These kernels add
up blocks of 64 positions in float32 and the blocks in float64, are as fast, and give the same bits for any number of
threads.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simclr.views.cpu_backend import spread
from simclr.views.cpu_compile import contracted

BLOCK = 64  # positions that are added up in float32
PIECE = 2048  # positions of a piece of work: sums of pieces are added in their order, whichever thread computes them


def applies(x: Tensor) -> bool:
    """Return whether the kernels take this tensor: float32, on a CPU, with its channels last in memory."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def moments(x: Float[Tensor, "b c h w"], about: Float[Tensor, " c"]) -> Float[Tensor, "2 c"]:
    """Return the sums over a batch of x - `about` and of its square, in float64."""
    return _sum_pieces(_moments, _positions(x), about.detach().float().numpy())


def gradient_moments(
    gradient: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"], mean: Float[Tensor, " c"]
) -> Float[Tensor, "2 c"]:
    """Return the sums over a batch of the gradient, and of the gradient times x - `mean`, in float64."""
    return _sum_pieces(_gradient_moments, _positions(x), mean.float().numpy(), _positions(gradient))


def scale_and_shift(
    x: Float[Tensor, "b c h w"], mean: Float[Tensor, " c"], scale: Float[Tensor, " c"], shift: Float[Tensor, " c"]
) -> Float[Tensor, "b c h w"]:
    """Return (x - mean) * scale + shift."""
    out = torch.empty_like(x)
    rows, result = _positions(x), _positions(out)
    vectors = [vector.detach().float().numpy() for vector in (mean, scale, shift)]
    spread(lambda part: _scale_and_shift(rows[part], *vectors, result[part]), len(rows))
    return out


def input_gradient(
    gradient: Float[Tensor, "b c h w"],
    x: Float[Tensor, "b c h w"],
    mean: Float[Tensor, " c"],
    factors: Float[Tensor, "3 c"],
) -> Float[Tensor, "b c h w"]:
    """Return factors[0] * gradient - factors[1] - factors[2] * (x - mean)."""
    out = torch.empty_like(x)
    rows, steps, result = _positions(x), _positions(gradient), _positions(out)
    vectors = [vector.float().numpy() for vector in (mean, *factors)]
    spread(lambda part: _input_gradient(rows[part], steps[part], *vectors, result[part]), len(rows))
    return out


def _positions(x: Tensor) -> Float[np.ndarray, "n c"]:
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


def _sum_pieces(kernel, x: np.ndarray, about: np.ndarray, *others: np.ndarray) -> Tensor:
    pieces = -(-len(x) // PIECE)
    sums = np.zeros((pieces, 2, x.shape[1]))

    def work(part: slice) -> None:
        for piece in range(part.start, part.stop):
            rows = slice(piece * PIECE, (piece + 1) * PIECE)
            kernel(x[rows], about, *(other[rows] for other in others), sums[piece])

    spread(work, pieces)
    return torch.from_numpy(sums.sum(0))


@contracted
def _moments(x, about, sums):
    n, c = x.shape
    first, second = np.empty(c, np.float32), np.empty(c, np.float32)
    for start in range(0, n, BLOCK):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + BLOCK, n)):
            row = x[i]
            for k in range(c):
                value = row[k] - about[k]
                first[k] += value
                second[k] += value * value
        for k in range(c):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@contracted
def _gradient_moments(x, mean, gradient, sums):
    n, c = x.shape
    first, second = np.empty(c, np.float32), np.empty(c, np.float32)
    for start in range(0, n, BLOCK):
        first[:] = 0
        second[:] = 0
        for i in range(start, min(start + BLOCK, n)):
            row, step = x[i], gradient[i]
            for k in range(c):
                first[k] += step[k]
                second[k] += step[k] * (row[k] - mean[k])
        for k in range(c):
            sums[0, k] += first[k]
            sums[1, k] += second[k]


@contracted
def _scale_and_shift(x, mean, scale, shift, out):
    for i in range(len(x)):
        row, result = x[i], out[i]
        for k in range(len(mean)):
            result[k] = (row[k] - mean[k]) * scale[k] + shift[k]


@contracted
def _input_gradient(x, gradient, mean, factor, constant, slope, out):
    for i in range(len(x)):
        row, step, result = x[i], gradient[i], out[i]
        for k in range(len(mean)):
            result[k] = step[k] * factor[k] - (constant[k] + (row[k] - mean[k]) * slope[k])
