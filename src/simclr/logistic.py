"""L2-penalised multinomial logistic regression on frozen features, by preconditioned L-BFGS.

The objective is scikit-learn's: the sum over images of the cross-entropy plus penalty / 2 * |W|^2, with a bias that
is not penalised (C = 1 / penalty). The search runs in the eigenbasis of the feature covariance, scaled by the
inverse root of an upper bound of the Hessian there: another coordinate system, the same optimum, a fraction of the
iterations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from simclr.evaluation import accuracy

PENALTIES = tuple(np.logspace(-6, 5, 45).tolist())  # the paper's sweep, App. B.8


@dataclass(frozen=True)
class Classifier:
    """Linear classifier over features: scores are features @ weight.T + bias."""

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]
    penalty: float
    iterations: int

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return features @ self.weight.T + self.bias


def fit_path(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 500,
) -> list[Classifier]:
    """One classifier a penalty, in the order given; each starts from the solution of the next larger penalty.

    A fit ends when the largest entry of the gradient of the mean objective, in the scaled coordinates, falls below
    `tolerance`. Raises ValueError for fewer than two classes in `labels`.
    """
    if len(labels.unique()) < 2:
        raise ValueError("labels hold one class only; a classifier needs at least two")
    n = len(features)
    mean = features.mean(0)
    centred = features - mean
    values, basis = torch.linalg.eigh((centred.T @ centred / n).double())
    values, basis = values.clamp_min(0).to(features), basis.to(features)
    rotated = centred @ basis
    solved: dict[float, Classifier] = {}
    weight = features.new_zeros(classes, features.shape[1])
    bias = labels.bincount(minlength=classes).to(features).add(1).log()
    bias -= bias.mean()
    for penalty in sorted(set(penalties), reverse=True):
        # softmax probabilities p have a Hessian diag(p) - pp' of at most 1/2; p(1-p) ~ 1/C where nothing is known
        scale = (values / classes + penalty / n).clamp_min(1e-10).rsqrt()
        weight, bias, iterations = _minimise(
            rotated, labels, weight / scale, bias, scale, penalty / n, tolerance, max_iterations
        )
        full = weight @ basis.T
        solved[penalty] = Classifier(full, bias - full @ mean, penalty, iterations)
    return [solved[penalty] for penalty in penalties]


def _minimise(
    x: Tensor, labels: Tensor, v: Tensor, bias: Tensor, scale: Tensor, decay: float, tolerance: float, limit: int
) -> tuple[Tensor, Tensor, int]:
    """Minimum over V and bias of the mean cross-entropy of x @ (V * scale).T + bias, plus decay/2 * |V * scale|^2."""
    n = len(x)
    rows = torch.arange(n, device=x.device)

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        w = point[:, :-1] * scale
        log_p = torch.addmm(point[:, -1], x, w.T).log_softmax(1)
        value = -log_p[rows, labels].double().mean() + 0.5 * decay * w.double().square().sum()
        residual = log_p.exp_()
        residual[rows, labels] -= 1
        gradient = torch.cat([(residual.T @ x / n + decay * w) * scale, residual.mean(0)[:, None]], 1)
        return value, gradient

    point, iterations = lbfgs(objective, torch.cat([v, bias[:, None]], 1), tolerance, limit)
    return point[:, :-1] * scale, point[:, -1], iterations


def lbfgs(objective, point: Tensor, tolerance: float, limit: int, memory: int = 10) -> tuple[Tensor, int]:
    """Limited-memory BFGS (Nocedal and Wright, algorithm 7.4) with a backtracking line search.

    `objective(point)` gives value and gradient. torch.optim.LBFGS does the same with several times the evaluations:
    its line search looks for a strong-Wolfe point, which the scaled coordinates make unnecessary.
    """
    value, gradient = objective(point)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for iteration in range(limit):
        if gradient.abs().max() <= tolerance:
            return point, iteration
        direction = -_two_loops(gradient, steps, changes)
        slope = (direction * gradient).sum()
        if slope >= 0:
            steps, changes, direction = [], [], -gradient
            slope = -(gradient * gradient).sum()
        rate = 1.0 if steps else min(1.0, 1.0 / gradient.norm().item())
        for _ in range(20):
            candidate = point + rate * direction
            new_value, new_gradient = objective(candidate)
            if new_value <= value + 1e-4 * rate * slope.double():
                break
            rate *= 0.5
        else:
            return point, iteration  # float precision is exhausted: no step of any size goes lower
        step, change = candidate - point, new_gradient - gradient
        if (step * change).sum() > 1e-10 * change.square().sum():
            steps, changes = [*steps[1 - memory :], step], [*changes[1 - memory :], change]
        point, value, gradient = candidate, new_value, new_gradient
    return point, limit


def _two_loops(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """The inverse-Hessian product of L-BFGS."""
    q, factors = gradient.clone(), []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        factors.append((s * q).sum() / (s * y).sum())
        q -= factors[-1] * y
    if steps:
        q *= (steps[-1] * changes[-1]).sum() / changes[-1].square().sum()
    for s, y, factor in zip(steps, changes, reversed(factors), strict=True):
        q += (factor - (y * q).sum() / (s * y).sum()) * s
    return q


def choose_and_refit(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    held_out: np.ndarray,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Classifier, dict[float, float]]:
    """Fit on the rows where `held_out` (N,) is false, choose the penalty by accuracy where it is true, refit on all.

    Ties go to the larger penalty. Returns the classifier and the held-out accuracy of every penalty.
    """
    chosen_on = torch.from_numpy(held_out).to(labels.device)
    # a tenth of the precision suffices to rank penalties; small ones on separable data would take for ever
    path = fit_path(
        features[~chosen_on], labels[~chosen_on], classes, penalties, tolerance=1e-4, max_iterations=100
    )
    scores = {c.penalty: accuracy(c(features[chosen_on]), labels[chosen_on]) for c in path}
    best = max(scores, key=lambda penalty: (scores[penalty], penalty))
    return fit_path(features, labels, classes, [best])[0], scores
