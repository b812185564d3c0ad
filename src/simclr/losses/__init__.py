"""The losses of SimCLR and those it was compared with, as pure functions of tensors.

Conventions, which differ between code bases: a loss is the mean over the 2N anchors (paper, eq. 1 and
algorithm 1); the official code's value of NT-Xent is exactly twice that, which recipes state as `loss_scale: 2`.
Logits are float32 (float64 for float64 input) whatever autocast says, and an anchor is removed from its own
candidates by a mask, never by subtraction, so the losses are exact at low temperature.

All contrastive losses take `keys` and `offset`. With several processes `keys` holds the views of all of them, (m, d)
each in the order of the ranks, and `offset` is the row of this process's first image among them. If the gathering sums
gradients backward, the mean of a loss over processes has the value and the gradient of one process with the whole
batch.
"""

from simclr.losses.alternatives import dcl, margin_triplet, nt_logistic
from simclr.losses.distillation import distillation
from simclr.losses.nt_xent import nt_xent
from simclr.losses.similarity import similarities, unit_rows
from simclr.losses.statistics import ContrastStatistics, contrast_statistics, official_contrast_statistics
from simclr.losses.supervised import supcon

__all__ = [
    "ContrastStatistics",
    "contrast_statistics",
    "dcl",
    "distillation",
    "margin_triplet",
    "nt_logistic",
    "nt_xent",
    "official_contrast_statistics",
    "similarities",
    "supcon",
    "unit_rows",
]
