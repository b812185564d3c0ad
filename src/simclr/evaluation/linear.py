"""Linear evaluation protocol of the paper (App. B.8): logistic regression on frozen features.

Features are scaled to unit variance on average, so that one range of penalties suits pixels and every network. The
penalty is chosen on a hold-out of the training images, and the chosen one is fitted on all of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simclr.data import Source
from simclr.data.multilabel import class_names, targets
from simclr.data.splits import holdout_mask
from simclr.evaluation.features import Features
from simclr.evaluation.logistic import PENALTIES, Classifier, choose_and_refit, fit_path
from simclr.evaluation.metrics import METRICS

PROTOCOL = "linear, L-BFGS"


@dataclass(frozen=True)
class LinearFit:
    """Linear classifier with the choice of its penalty; a function from features to scores."""

    classifier: Classifier
    scale: Float[Tensor, ""]
    metric: str
    held_out_score: float
    held_out: Bool[np.ndarray, " n"]
    """training images on which the penalty was chosen"""

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.classifier(features / self.scale)

    @property
    def detail(self) -> dict[str, float]:
        """The chosen penalty and its score on the hold-out."""
        return {"penalty": self.classifier.penalty, f"held_out_{self.metric}": self.held_out_score}

    def held_out_scores(self, train: Features, classes: int) -> tuple[Tensor, Tensor]:
        """Return scores and labels of the hold-out, by a classifier with the chosen penalty that was fitted on the
        other training images."""
        rows = torch.from_numpy(self.held_out).to(train.labels.device)
        features = train.features / self.scale
        partial = fit_path(features[~rows], train.labels[~rows], classes, [self.classifier.penalty])[0]
        return partial(features[rows]), train.labels[rows]


def fit_linear(train: Features, source: Source, *, seed: int = 0, metric: str = "top1") -> LinearFit:
    """Return the linear classifier of the features of a training split, with the penalty chosen by `metric` on a
    hold-out that `seed` selects; multi-label images have one regression for each class."""
    rows = train.indices.numpy()
    labels = torch.from_numpy(targets(source))[train.indices].to(train.features.device)
    scale = train.features.std(0).square().mean().sqrt()
    held_out, classes = holdout_mask(source, seed=seed)[rows], len(class_names(source))
    classifier, scores = choose_and_refit(train.features / scale, labels, held_out, classes, PENALTIES, METRICS[metric])
    return LinearFit(classifier, scale, metric, scores[classifier.penalty], held_out)
