"""Linear classifier of the official code: momentum SGD on frozen features, and a bank of classifiers in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.optim import lr_factor, peak_lr, total_steps
from simclr.randomness import permutation

MOMENTUM = 0.9


class Probes(NamedTuple):
    """Linear classifiers on the same features: scores of probe p are features @ weight[p].T + bias[p]."""

    weight: Float[Tensor, "p c d"]
    bias: Float[Tensor, "p c"]

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "p n c"]:
        p, c, d = self.weight.shape
        scores = features @ self.weight.view(p * c, d).T
        return scores.view(-1, p, c).transpose(0, 1) + self.bias[:, None]


@torch.no_grad()
def sgd_probes(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    classes: int,
    *,
    lrs: Sequence[float],
    decays: Sequence[float],
    batch: int = 512,
    epochs: int | float = 100,
    seed: int = 0,
) -> Probes:
    """Return probes trained on the same batches: probe p has learning rate lrs[p], per 256 images, and weight decay
    decays[p].

    Zero start, Nesterov momentum 0.9 with the learning rate inside the velocity, no warm-up, cosine decay to zero
    (official README; paper, App. B.6). Weight decay is not applied to biases. A batch larger than the data set is
    reduced to it, and the learning rates with it.
    """
    batch = min(batch, len(features))
    probes, d = len(lrs), features.shape[1]
    peaks = features.new_tensor([peak_lr(lr, batch, "linear") for lr in lrs])
    decay = features.new_tensor(decays)[:, None, None]
    weight, bias = features.new_zeros(probes, classes, d), features.new_zeros(probes, classes)
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    steps, per_epoch = total_steps(len(features), batch, epochs), len(features) // batch
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        if k == 0:
            order = torch.from_numpy(permutation(seed, epoch, len(features))).to(features.device)
        rows = order[k * batch : (k + 1) * batch]
        x, y = features[rows], labels[rows]
        residual = Probes(weight, bias)(x).softmax(2)
        residual[:, torch.arange(len(y), device=y.device), y] -= 1
        rate = peaks * lr_factor(step, steps, 0)
        gradient = (residual.transpose(1, 2).reshape(-1, len(y)) @ x).view_as(weight) / len(y) + decay * weight
        _nesterov(weight, velocity, gradient, rate[:, None, None])
        _nesterov(bias, bias_velocity, residual.mean(1), rate[:, None])
    return Probes(weight, bias)


def _nesterov(point: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor) -> None:
    scaled = rate * gradient
    velocity.mul_(MOMENTUM).add_(scaled)
    point.sub_(MOMENTUM * velocity + scaled)
