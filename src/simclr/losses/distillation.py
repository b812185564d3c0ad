"""Distillation loss of SimCLRv2."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from simclr.errors import SettingError
from simclr.losses.similarity import full_precision


def distillation(
    student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the student's softmax(scores / temperature) and the teacher's, nats, as the mean over
    images (SimCLRv2, equation 3). The teacher receives no gradient; there is no factor of temperature squared."""
    if not temperature > 0:
        raise SettingError("temperature", "above 0", temperature)
    with torch.autocast(student.device.type, enabled=False):
        targets = (full_precision(teacher.detach()) / temperature).softmax(1)
        return -(targets * (full_precision(student) / temperature).log_softmax(1)).sum(1).mean()


def labels_loss(scores: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, ""]:
    """Return the cross-entropy, as the mean over the images of a batch that have a label; 0 if none has."""
    return F.cross_entropy(scores.float(), labels, ignore_index=-1, reduction="sum") / (labels >= 0).sum().clamp(min=1)
