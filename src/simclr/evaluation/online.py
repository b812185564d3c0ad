"""k-NN accuracy during training."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from simclr.data import Source
from simclr.data.splits import sample_rows
from simclr.evaluation.features import extract_together
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.neighbours import knn_votes
from simclr.randomness import permutation
from simclr.views.preprocess import Preprocess

KNN_IMAGES = 5_000  # maximum number of labelled images of the check, a fifth of them as queries


@dataclass(frozen=True)
class KnnCheck:
    """k-NN accuracy on a sample of the training images, part of which is the bank: no test image is ever read."""

    bank: Source
    queries: Source
    preprocess: Preprocess
    workers: int = 0
    """number of decoding processes"""

    @classmethod
    def of(cls, source: Source, preprocess: Preprocess, workers: int = 0) -> "KnnCheck | None":
        """Return the check of a labelled source, None if it has no labels."""
        if source.labels is None:
            return None
        if source.starts is not None:
            rows = sample_rows(source, KNN_IMAGES)
            chosen = rows[source.labels[rows] >= 0]
        else:
            labelled = np.flatnonzero(source.labels >= 0)
            chosen = labelled[permutation(0, 0, len(labelled))[:KNN_IMAGES]]
        cut = len(chosen) // 5
        if cut == 0:
            return None
        queries, bank = np.sort(chosen[:cut]), np.sort(chosen[cut:])
        return cls(source.select(bank, source.split), source.select(queries, source.split), preprocess, workers)

    def __call__(self, encoder: nn.Module, device: torch.device) -> dict[str, float]:
        """Return the accuracy; of several processes, each must call this."""
        training = encoder.training
        (bank,), (queries,) = (
            extract_together([encoder], source, self.preprocess, device=device, workers=self.workers)
            for source in (self.bank, self.queries)
        )
        encoder.train(training)
        classes = len(self.bank.classes)
        votes = knn_votes(bank.features, bank.labels, queries.features, classes, k=20, temperature=0.07)
        return {"knn_top1": accuracy(votes, queries.labels)}
