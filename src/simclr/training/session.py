"""Beginning of every training run: its folder is opened, its network prepared and wrapped for the devices."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from simclr.errors import RunError
from simclr.models import norm
from simclr.models.bfloat16 import refuse_wrong_convolutions
from simclr.models.classifier import Classifier
from simclr.optim import parameter_groups
from simclr.runs.machine import Machine
from simclr.runs.run import Run
from simclr.training.gathering import SHARED_FOLDER, is_same_on_all_ranks
from simclr.training.recompute import recompute_blocks
from simclr.training.trackers import Tracking


def open_run(fabric: Fabric, folder: Path, task: Any, data: dict[str, Any], fresh: bool) -> Run:
    """Open a run folder for a task that learns from `data`; nothing is written until `fit`.

    An error of one process, such as changed settings, ends all of them.
    """
    error = None
    try:
        run = Run.open(folder, task, data=data, fresh=fresh, writes=fabric.is_global_zero)
        if task.tracker is not None:
            run.open_follower = partial(Tracking, task.tracker)
    except (ValueError, OSError) as raised:
        error = raised
    failed = fabric.all_reduce(torch.tensor(float(error is not None), device=fabric.device), reduce_op="sum")
    if error is not None:
        raise error
    if failed:
        raise RunError(folder, "another process could not open it")
    return run


def is_finished(run: Run, fabric: Fabric, steps: int | None = None) -> bool:
    """Return whether the run is complete, with its last step at `steps` if given; say so if it is. Raises RunError for
    a run that ended before and has no checkpoint to continue from."""
    result = run.result
    done = result is not None and steps in (None, result.get("steps", steps))
    if result is not None and not done and not run.has_checkpoint:
        raise RunError(run.path, "has no checkpoint to continue from", "Start another run from its weights with --init")
    if not is_same_on_all_ranks(fabric, done):
        raise RunError(run.path, "some processes see a finished run here, others do not", SHARED_FOLDER)
    if done:
        fabric.print(f"{run.path} holds the finished run of these settings; --fresh starts over")
    return done


def prepare(machine: Machine, fabric: Fabric, model: nn.Module, *, local_norms: bool = False) -> nn.Module:
    """Return `model` on its device, not yet wrapped for training. Its batch norms have the statistics of all processes
    and, in float32 on a CPU, the same arithmetic for any number of processes; `local_norms` have those of each."""
    several = fabric.world_size > 1
    if not (several and local_norms) and (
        several or (fabric.device.type == "cpu" and machine.precision_in_use == "32")
    ):
        model = norm.replace_norms(model)
    if fabric.device.type == "cpu" and machine.precision_in_use == "bf16":
        model = refuse_wrong_convolutions(model)
    if machine.recompute:
        model = recompute_blocks(model)
    if machine.precision == "64":
        model = model.double()
    return model.to(fabric.device, memory_format=torch.channels_last)


def wrap(
    machine: Machine,
    fabric: Fabric,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    once_per_step: bool = False,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return network and optimizer wrapped for the devices; compile the network if the machine settings say so.

    A network that a training step calls once is a CUDA graph on one GPU: starting its kernels one by one takes the
    processor longer than the GPU computes for small images. Its outputs are valid until the next call.
    """
    if machine.compile:
        torch.compiler.reset()  # what earlier runs of this process have compiled: torch compiles a few versions only
        is_graph = once_per_step and fabric.device.type == "cuda" and fabric.world_size == 1
        mode = "reduce-overhead" if is_graph else None
        network.compile(dynamic=False, mode=mode)  # before it is wrapped: a compiled wrapper would call itself for ever
    return fabric.setup(network, optimizer)


def classifier_groups(model: Classifier, weight_decay: float, *, decay_biases: bool = False) -> list[dict]:
    """Return parameter groups of a classifier on an encoder: its last layer is not adapted by LARS, and its bias has no
    weight decay (official code) without `decay_biases`."""
    weight, bias = model.classifier.weight, model.classifier.bias
    return [
        *parameter_groups(nn.ModuleList([model.encoder, model.head]), weight_decay, decay_biases=decay_biases),
        {"params": [weight], "weight_decay": weight_decay, "adapt": False},
        {"params": [bias], "weight_decay": weight_decay if decay_biases else 0.0, "adapt": False},
    ]
