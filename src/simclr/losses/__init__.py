"""Contrastive losses as pure functions of tensors: NT-Xent, the losses it was compared with, and distillation.

Conventions, which differ between code bases: a loss is the mean over the 2N anchors (paper, eq. 1 and
algorithm 1); the official code's value of NT-Xent is exactly twice that, which recipes state as `loss_scale: 2`.
Logits are float32 (float64 for float64 input) whatever autocast says, and an anchor is removed from its own
candidates by a mask, never by subtraction, so the losses are exact at low temperature.

All contrastive losses take `keys`, the gathered views of all processes, see `Keys`. If the backward pass of the
gathering sums gradients, the mean of a loss over processes has the value and the gradient of one process with the
whole batch.
"""

from simclr.losses.alternatives import dcl, margin_triplet, nt_logistic
from simclr.losses.distillation import distillation
from simclr.losses.global_contrast import sogclr
from simclr.losses.nt_xent import nt_xent
from simclr.losses.objective import Objective
from simclr.losses.similarity import Keys, similarities, unit_rows
from simclr.losses.statistics import ContrastStatistics, contrast_statistics, official_contrast_statistics
from simclr.losses.supervised import supcon

__all__ = [
    "ContrastStatistics",
    "Keys",
    "Objective",
    "contrast_statistics",
    "dcl",
    "distillation",
    "margin_triplet",
    "nt_logistic",
    "nt_xent",
    "official_contrast_statistics",
    "similarities",
    "sogclr",
    "supcon",
    "unit_rows",
]
