"""Distillation loss of SimCLRv2."""

import torch
from jaxtyping import Float
from torch import Tensor

from simclr.losses.similarity import full_precision


def distillation(
    student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the student's softmax(scores / temperature) to the teacher's, nats, mean over images
    (SimCLRv2, equation 3). The teacher takes no gradient; the loss is not multiplied by temperature squared."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    with torch.autocast(student.device.type, enabled=False):
        wanted = (full_precision(teacher.detach()) / temperature).softmax(1)
        return -(wanted * (full_precision(student) / temperature).log_softmax(1)).sum(1).mean()
