"""Common parts of every trained task."""

import torch
from lightning_fabric import Fabric
from torch import nn

from simclr.models import norm
from simclr.runs.machine import Machine
from simclr.training.recompute import recompute_blocks


def prepare(machine: Machine, fabric: Fabric, model: nn.Module) -> nn.Module:
    """Return `model` on its device, with batch statistics over all processes; not yet wrapped for training."""
    if fabric.world_size > 1:
        model = norm.synchronise(model)
    if machine.recompute:
        model = recompute_blocks(model)
    if machine.precision == "64":
        model = model.double()
    return model.to(fabric.device, memory_format=torch.channels_last)
