"""kNN accuracy while an encoder is trained."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from simclr.data import Source
from simclr.evaluation.features import extract
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.neighbours import knn_votes
from simclr.randomness import permutation
from simclr.views.preprocess import Preprocess

KNN_IMAGES = 5_000  # at most so many labelled images serve the check, a fifth of them as queries


@dataclass(frozen=True)
class KnnCheck:
    """kNN accuracy on some of the training images, the others being the bank: no test image is ever touched."""

    bank: Source
    queries: Source
    preprocess: Preprocess

    @classmethod
    def of(cls, source: Source, preprocess: Preprocess) -> "KnnCheck | None":
        """The check for a labelled source, None for one without labels."""
        if source.labels is None:
            return None
        labelled = np.flatnonzero(source.labels >= 0)
        chosen = labelled[permutation(0, 0, len(labelled))[:KNN_IMAGES]]
        cut = len(chosen) // 5
        if cut == 0:
            return None
        queries, bank = np.sort(chosen[:cut]), np.sort(chosen[cut:])
        return cls(source.select(bank, source.split), source.select(queries, source.split), preprocess)

    def __call__(self, encoder: nn.Module, device: torch.device) -> dict[str, float]:
        training = encoder.training
        bank = extract(encoder, self.bank, self.preprocess, device=device)
        queries = extract(encoder, self.queries, self.preprocess, device=device)
        encoder.train(training)
        classes = len(self.bank.classes)
        votes = knn_votes(bank.features, bank.labels, queries.features, classes, k=20, temperature=0.07)
        return {"knn_top1": accuracy(votes, queries.labels)}
