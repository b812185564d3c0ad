"""Evaluation: features of a frozen encoder, metrics, classifiers on features, and confidence intervals.

Metrics are pure functions of features (n, d). Computations that need float64 run on the CPU if the device has no
float64 (MPS).
"""

from simclr.evaluation.metrics import (
    METRICS,
    accuracy,
    alignment,
    average_precision,
    embedding_std,
    map11,
    mean_per_class,
    rankme,
    uniformity,
)
from simclr.evaluation.neighbours import knn_votes, neighbours

__all__ = [
    "METRICS",
    "accuracy",
    "alignment",
    "average_precision",
    "embedding_std",
    "knn_votes",
    "map11",
    "mean_per_class",
    "neighbours",
    "rankme",
    "uniformity",
]
