"""Replay of the steps after a checkpoint, to find where a number that is not finite arises.

Nothing but the checkpoint is needed: batches and all draws are functions of the seed and the step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from lightning_fabric import Fabric
from torch import Tensor, nn

from simclr.training.fit import Parts, Schedule, train_step


class Failure(NamedTuple):
    """First step of a run after which something is not finite."""

    step: int
    """counted from 0"""
    indices: Int64[np.ndarray, " b"]
    """images of the batch"""
    where: str
    """what is not finite first"""


def replay(fabric: Fabric, parts: Parts, schedule: Schedule, state: dict[str, Any] | None, most: int) -> Failure | None:
    """Continue for at most `most` steps from a checkpoint, or from the beginning; return the first failure, if any."""
    start = 0
    if state is not None:
        start = state["step"]
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        fabric.strategy.precision.load_state_dict(state["precision"])
    steps = range(start, min(start + most, schedule.steps))
    is_scaled = bool(fabric.strategy.precision.state_dict())  # float16, where a step of infinite gradients is skipped
    for batch, step in zip(parts.batches(steps), steps, strict=True):
        with _noted(parts.model, gradients=not is_scaled) as notes:
            loss, _ = train_step(fabric, parts, schedule, step, batch)
        if not loss.isfinite():
            notes.append("the loss")
        notes += [f"{name} after the step" for name, value in parts.model.state_dict().items() if not _is_finite(value)]
        if notes:
            return Failure(step, batch.indices, notes[0])
    return None


@contextmanager
def _noted(model: nn.Module, gradients: bool) -> Iterator[list[str]]:
    """Yield a list that receives the outputs of modules and the `gradients` that are not finite, as they arise."""
    notes: list[str] = []

    def note(text: str, _: Any, *values: Any) -> None:
        if not _is_finite(values[-1]):
            notes.append(text)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not list(module.children()):
                handle = module.register_forward_hook(partial(note, f"the output of {name}"))
                stack.callback(handle.remove)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and gradients:
                hook = lambda p, text=f"the gradient of {name}": note(text, p, p.grad)
                stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
        yield notes


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())
