"""Linear evaluation protocol of the paper (App. B.8): logistic regression on frozen features.

Features are scaled to unit variance on average, so that one range of penalties suits pixels and every network. The
penalty is chosen on a hold-out of the training images, and the chosen one is fitted on all of them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simclr.data import Source
from simclr.data.multilabel import class_names, targets
from simclr.data.splits import holdout_mask
from simclr.evaluation.features import Features
from simclr.evaluation.logistic import PATIENCE, PENALTIES, Classifier, choose_and_refit, fit_path
from simclr.evaluation.metrics import METRICS

PROTOCOL = "linear, L-BFGS"
FEW = 1000  # labelled images up to which one hold-out, a tenth of them, would leave the choice to chance
HELD_OUT_ROWS = 1000  # of all hold-outs together, if labels are few: fewer leave the choice of a penalty to chance
MOST_HOLDOUTS = 10
SPARSE = 3  # of the penalties, every third is tried on several hold-outs
USUAL = 10.0  # penalty for few labels unless another is clearly better: the first of few hold-outs are right by chance


@dataclass(frozen=True)
class LinearFit:
    """Linear classifier with the choice of its penalty; a function from features to scores."""

    classifier: Classifier
    scale: Float[Tensor, ""]
    metric: str
    held_out_score: float | None
    """mean over the hold-outs; None if there is none"""
    held_out: Bool[np.ndarray, " n"]
    """training images on which the penalty was chosen; the first of several hold-outs"""

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.classifier(features / self.scale)

    def cpu(self) -> "LinearFit":
        """Return the same on the CPU."""
        weight, bias = self.classifier.weight.cpu(), self.classifier.bias.cpu()
        return replace(self, classifier=replace(self.classifier, weight=weight, bias=bias), scale=self.scale.cpu())

    @property
    def weight(self) -> Float[Tensor, "c d"]:
        """Weight for features without the scaling: scores are features @ weight.T + bias."""
        return self.classifier.weight / self.scale

    @property
    def bias(self) -> Float[Tensor, " c"]:
        """Bias of the classifier."""
        return self.classifier.bias

    @property
    def detail(self) -> dict[str, float]:
        """The chosen penalty and its score on the hold-out."""
        score = {} if self.held_out_score is None else {f"held_out_{self.metric}": self.held_out_score}
        return {"penalty": self.classifier.penalty, **score}

    def held_out_scores(self, train: Features, classes: int) -> tuple[Tensor, Tensor]:
        """Return scores and labels of the hold-out, by a classifier with the chosen penalty that was fitted on the
        other training images."""
        rows = torch.from_numpy(self.held_out).to(train.labels.device)
        features = train.features / self.scale
        partial = fit_path(features[~rows], train.labels[~rows], classes, [self.classifier.penalty])[0]
        return partial(features[rows]), train.labels[rows]


def fit_linear(train: Features, source: Source, *, seed: int = 0, metric: str = "top1", few: bool = False) -> LinearFit:
    """Return the linear classifier of the features of a training split, with the penalty chosen by `metric` on a
    hold-out that `seed` selects; multi-label images have one regression for each class.

    `few` is for few labels, as at most `FEW` images always are: the mean score on several hold-outs decides, of
    `HELD_OUT_ROWS` images together if 10 are enough for that, among a third of the penalties, against one near `USUAL`,
    than which the best must be better by two standard errors. If each image is the only one of its class, none can be
    held out, and the penalty is `USUAL`.
    """
    rows = train.indices.numpy()
    labels = torch.from_numpy(targets(source))[train.indices].to(train.features.device)
    scale = train.features.std(0).square().mean().sqrt()
    held_out, classes = holdout_mask(source, seed=seed)[rows], len(class_names(source))
    features = train.features / scale
    few = few or len(rows) <= FEW
    if few and not held_out.any():
        return LinearFit(fit_path(features, labels, classes, [USUAL])[0], scale, metric, None, held_out)
    count = min(-(-HELD_OUT_ROWS // int(held_out.sum())), MOST_HOLDOUTS) if few else 1
    others = (holdout_mask(source, seed=seed + k)[rows] for k in range(1, count))
    masks, sparse = [held_out, *(mask for mask in others if mask.any())], SPARSE if few else 1
    penalties, patience = PENALTIES[::sparse], -(-PATIENCE // sparse)
    usual = USUAL if few else None
    classifier, scores = choose_and_refit(features, labels, masks, classes, penalties, METRICS[metric], patience, usual)
    return LinearFit(classifier, scale, metric, scores[classifier.penalty], held_out)
