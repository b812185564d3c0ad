"""L2-penalised logistic regression on frozen features, multinomial or one for each class, by preconditioned L-BFGS.

The objective is scikit-learn's: the sum over images of the cross-entropy plus penalty / 2 * |W|^2, with a bias that
is not penalised (C = 1 / penalty). The search runs in the eigenbasis of the feature covariance, scaled by the
inverse root of an upper bound of the Hessian there: the optimum is the same and found in a fraction of the iterations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from simclr.errors import DataError
from simclr.evaluation.metrics import accuracy, correct

PENALTIES = tuple(np.logspace(-6, 5, 45).tolist())  # the paper's sweep, App. B.8
SPANNED = 1e-10  # of the largest eigenvalue: what is smaller is rounding
ROWS_PER_FEATURE = 24  # of the sample from which the covariance is estimated
PATIENCE = 8  # number of penalties (two decades) without a better held-out score or loss after which a sweep ends
MEMORY = 20  # steps that L-BFGS remembers
Labels = Int64[Tensor, " n"] | Bool[Tensor, "n c"]
Metric = Callable[[Tensor, Tensor], float]
Pair = tuple[Tensor, Tensor, Tensor]
"""A step of L-BFGS, the change of the gradient over it, and the sum of their products"""


@dataclass(frozen=True)
class LinearClassifier:
    """Linear classifier on features: scores are features @ weight.T + bias."""

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Classifier(LinearClassifier):
    """Linear classifier with the way it was fitted."""

    penalty: float
    iterations: int


def fit_path(
    features: Float[Tensor, "n d"],
    labels: Labels,
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 500,
) -> list[Classifier]:
    """Return one classifier for each penalty, in the order given; each fit starts from the solution of the next larger
    penalty.

    Labels (n,) are exclusive classes; labels (n, classes) say which classes are present and give one two-class
    regression for each class. A fit ends when the largest entry of the gradient of the mean objective, in the scaled
    coordinates, falls below `tolerance`.
    """
    ordered = sorted(set(penalties), reverse=True)
    fits = fit_decreasing(features, labels, classes, ordered, tolerance=tolerance, max_iterations=max_iterations)
    solved = dict(zip(ordered, fits, strict=True))
    return [solved[penalty] for penalty in penalties]


def fit_decreasing(
    features: Float[Tensor, "n d"],
    labels: Labels,
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float,
    max_iterations: int,
) -> Iterator[Classifier]:
    """Yield the classifiers of `fit_path` one by one; the penalties must decrease."""
    if labels.ndim == 1 and len(labels.unique()) < 2:
        raise DataError("labels", "hold one class only; a classifier needs at least two")
    n, d = features.shape
    mean = features.mean(0)
    centred = features - mean
    values, basis = _eigenbasis(centred)
    weight, bias = features.new_zeros(classes, d), _prior(labels, classes).to(features)
    curvature = 1 / classes if labels.ndim == 1 else 1 / 4  # p (1 - p) before anything is fitted
    for penalty in penalties:
        scale = (curvature * values + penalty / n).clamp_min(1e-10).rsqrt()
        scaled = basis * scale
        start = torch.cat([weight @ basis / scale, bias[:, None]], 1)  # the last solution in the new coordinates
        loss = _Objective(centred, labels, scaled, penalty / n)
        point, iterations = lbfgs(loss, start, tolerance, max_iterations)
        weight, bias = point[:, :-1] @ scaled.T, point[:, -1]
        yield Classifier(weight, bias - weight @ mean, penalty, iterations)


def _eigenbasis(centred: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"]]:
    """Return eigenvalues and eigenvectors of the covariance of centred features; of fewer rows than features only those
    of their span, in which the weights of the optimum lie."""
    n, d = centred.shape
    if n >= d:  # the eigenbasis only shapes the search, so a sample of the rows serves as well as all of them
        sample = centred[:: max(1, n // (ROWS_PER_FEATURE * d))]
        values, basis = torch.linalg.eigh((sample.T @ sample / len(sample)).double())
    else:
        rows = centred.double()
        values, basis = torch.linalg.eigh(rows @ rows.T / n)
        spans = values > SPANNED * values[-1]
        values, basis = values[spans], rows.T @ basis[:, spans] / (n * values[spans]).sqrt()
    return values.clamp_min(0).to(centred), basis.to(centred)


def _prior(labels: Labels, classes: int) -> Float[Tensor, " c"]:
    """Return scores that give every image the frequencies of the classes, each counted once more than it occurs."""
    if labels.ndim == 2:
        return ((labels.sum(0) + 1) / (len(labels) + 2)).logit()
    counts = labels.bincount(minlength=classes).float().add(1).log()
    return counts - counts.mean()


class _Objective:
    """Mean cross-entropy plus decay / 2 * |W|^2, with its gradient, at points [V | bias] with W = V @ scaled.T."""

    def __init__(self, x: Tensor, labels: Labels, scaled: Tensor, decay: float) -> None:
        self.x, self.labels, self.scaled, self.decay = x, labels, scaled, decay
        self.rows = torch.arange(len(x), device=x.device)

    def __call__(self, point: Tensor) -> tuple[Tensor, Tensor]:
        w, n = point[:, :-1] @ self.scaled.T, len(self.x)
        loss, residual = self._loss(torch.addmm(point[:, -1], self.x, w.T))
        value = loss.double().sum() / n + 0.5 * self.decay * w.double().square().sum()
        gradient = (residual.T @ self.x / n + self.decay * w) @ self.scaled
        return value, torch.cat([gradient, residual.mean(0)[:, None]], 1)

    def _loss(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each row or entry, and its derivative by the scores."""
        if self.labels.ndim == 2:
            loss = F.softplus(scores).sub_(scores * self.labels)
            return loss, scores.sigmoid_().sub_(self.labels.to(scores))
        log_p = scores.log_softmax(1)
        loss = -log_p[self.rows, self.labels]
        residual = log_p.exp_()
        residual[self.rows, self.labels] -= 1
        return loss, residual


def lbfgs(objective, point: Tensor, tolerance: float, limit: int) -> tuple[Tensor, int]:
    """Minimise by limited-memory BFGS (Nocedal and Wright, algorithm 7.4) with a backtracking line search; return the
    point and the number of iterations.

    `objective(point)` returns value and gradient. torch.optim.LBFGS needs several times the evaluations: its line
    search looks for a strong-Wolfe point, which the scaled coordinates make unnecessary.
    """
    value, gradient = objective(point)
    pairs: list[Pair] = []
    for iteration in range(limit):
        if gradient.abs().max() <= tolerance:
            return point, iteration
        direction = -_two_loops(gradient, pairs)
        slope = (direction * gradient).sum()
        if slope >= 0:
            pairs, direction = [], -gradient
            slope = -(gradient * gradient).sum()
        rate = 1.0 if pairs else min(1.0, 1.0 / gradient.norm().item())
        for _ in range(20):
            candidate = point + rate * direction
            new_value, new_gradient = objective(candidate)
            if new_value <= value + 1e-4 * rate * slope.double():
                break
            rate *= 0.5
        else:
            return point, iteration  # float precision is exhausted: no step of any size reduces the value
        step, change = candidate - point, new_gradient - gradient
        if (product := (step * change).sum()) > 1e-10 * change.square().sum():
            pairs = [*pairs[1 - MEMORY :], (step, change, product)]
        point, value, gradient = candidate, new_value, new_gradient
    return point, limit


def _two_loops(gradient: Tensor, pairs: list[Pair]) -> Tensor:
    """Return the inverse-Hessian product of L-BFGS."""
    q, factors = gradient.clone(), []
    for step, change, product in reversed(pairs):
        factors.append((step * q).sum() / product)
        q -= factors[-1] * change
    if pairs:
        _, change, product = pairs[-1]
        q *= product / change.square().sum()
    for (step, change, product), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - (change * q).sum() / product) * step
    return q


def choose_and_refit(
    features: Float[Tensor, "n d"],
    labels: Labels,
    held_out: Bool[np.ndarray, " n"] | Sequence[Bool[np.ndarray, " n"]],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    metric: Metric = accuracy,
    patience: int = PATIENCE,
    usual: float | None = None,
) -> tuple[Classifier, dict[float, float]]:
    """Fit on the rows where `held_out` (N,) is false, choose the penalty by `metric` where it is true, and refit on
    all. Of several hold-outs, each with a fit of its own, the mean score decides.

    Penalties are tried from the largest down, until neither the score nor the cross-entropy of the held-out rows has
    improved at `patience` of them. Ties go to the larger penalty. If there is a `usual` penalty, it is tried too and
    chosen unless the best one is right on more of the held-out rows, by more than two standard errors. Return the
    classifier and the held-out score of every penalty tried.
    """
    selections = [torch.from_numpy(rows).to(labels.device) for rows in np.atleast_2d(held_out)]
    if not all(0 < int(rows.sum()) < len(labels) for rows in selections):
        raise DataError("labels", f"{len(labels)} training images are too few to hold out some of them")
    ordered = sorted(set(penalties), reverse=True)
    # a thirtieth of the precision ranks penalties as well; small penalties on separable data would take for ever
    fits = [
        fit_decreasing(features[~rows], labels[~rows], classes, ordered, tolerance=3e-4, max_iterations=100)
        for rows in selections
    ]
    held_out_features, truths = [features[rows] for rows in selections], [labels[rows] for rows in selections]
    scores: dict[float, float] = {}
    hits: dict[float, Float[Tensor, " n"]] = {}  # on how many hold-outs each row is predicted rightly
    best, idle = (-np.inf, np.inf), 0
    for penalty, *classifiers in zip(ordered, *fits, strict=True):
        predicted = [classifier(x) for classifier, x in zip(classifiers, held_out_features, strict=True)]
        pairs = list(zip(predicted, truths, strict=True))
        scores[penalty] = score = float(np.mean([metric(*pair) for pair in pairs]))
        if usual is not None:
            hits[penalty] = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
            for rows, pair in zip(selections, pairs, strict=True):
                hits[penalty][rows] += correct(*pair)
        loss = float(np.mean([_cross_entropy(*pair) for pair in pairs]))
        idle = 0 if score > best[0] or loss < best[1] else idle + 1
        best = max(best[0], score), min(best[1], loss)
        if idle >= patience and penalty <= (usual or np.inf):
            break
    chosen = max(scores, key=lambda penalty: (scores[penalty], penalty))
    if usual is not None:
        nearest = min(scores, key=lambda penalty: abs(np.log(penalty / usual)))
        gains = hits[chosen] - hits[nearest]
        chosen = chosen if gains.sum() > 2 * gains.square().sum().sqrt() else nearest
    return fit_path(features, labels, classes, [chosen])[0], scores


def _cross_entropy(scores: Tensor, labels: Labels) -> float:
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores)).item()
    return F.cross_entropy(scores, labels).item()
