"""What a run runs on: devices, processes, precision, worker processes. Lightning Fabric does the work."""

import inspect
import logging
import os
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from simclr.runs.environment import cores

# torch 2.14 gave the setting another name and warns of the old one
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a task computes. Nothing here changes what is computed, but for the rounding of `precision`.

    Processes are started by the task itself (`devices`), or beforehand by torchrun or SLURM.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """kind of device; auto takes a GPU where there is one"""
    devices: int = 1
    """processes on this node, one a device; the batch is shared out among them"""
    nodes: int = 1
    """number of nodes"""
    precision: Literal["auto", "32", "bf16", "16", "64"] = "auto"
    """of the forward and backward pass; auto is bf16 on a GPU that has it, else 32, where convolutions on a GPU may
    round to TF32, as PyTorch has it"""
    workers: int = -1
    """processes that decode images; -1 is one fewer than the CPU cores this process may use, at most 16"""
    storage: Literal["auto", "resident", "streamed"] = "auto"
    """images kept decoded on the device, or decoded by workers as they come; auto keeps them where they fit"""
    compile: bool = False
    """compile the network with torch.compile"""
    recompute: bool = False
    """keep activations at the ends of blocks only and compute the others again: less memory for a third more work"""

    def __post_init__(self) -> None:
        for name in ("devices", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"machine.{name} must be at least 1, got {getattr(self, name)}")
        if self.compile and self.recompute:
            raise ValueError("machine.compile and machine.recompute do not go together; choose one")
        if self.workers < -1:
            raise ValueError(f"machine.workers must be -1 or more, got {self.workers}")

    @property
    def kind(self) -> str:
        """cuda, mps or cpu: what `accelerator` stands for here."""
        if self.accelerator != "auto":
            return self.accelerator
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    @property
    def worker_processes(self) -> int:
        """Number of decoding processes for each training process."""
        if self.workers >= 0:
            return self.workers
        return max(0, min(cores() // self._layout[0] - 1, 16))

    @property
    def _layout(self) -> tuple[int, int]:
        """Training processes on each node, and nodes: as torchrun started them, else as asked for."""
        if "LOCAL_WORLD_SIZE" not in os.environ:
            return self.devices, self.nodes
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ.get("WORLD_SIZE", here)) // here

    def launch(self) -> Fabric:
        """Start the processes and join them; each of them returns from here with its own rank."""
        if self.kind == "cuda" and not torch.cuda.is_available():
            raise ValueError("machine.accelerator is cuda, but torch finds no CUDA device; allowed here: cpu, auto")
        precision = self.precision
        if precision == "auto":
            native = self.kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if native else "32"
        if precision == "64" and self.kind == "mps":
            raise ValueError("machine.precision is 64, which MPS does not have; allowed there are auto, 32, bf16, 16")
        if precision == "16" and self.kind == "cpu":
            raise ValueError("machine.precision is 16, which needs a GPU; allowed on a CPU are auto, 32, bf16, 64")
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        devices, nodes = self._layout
        many = devices * nodes > 1
        if (started := _started()) not in (None, devices * nodes):  # each would believe that it is alone
            raise ValueError(
                f"machine.devices x machine.nodes is {devices} x {nodes}, but {started} processes were started "
                "(WORLD_SIZE or SLURM_NTASKS): say how many run on each node (devices), and on how many nodes"
            )
        fabric = Fabric(
            accelerator=self.kind,
            devices=devices,
            num_nodes=nodes,
            # buffers hold synchronised statistics, equal on every rank: nothing to broadcast
            strategy=DDPStrategy(**{_SYNC_BUFFERS: False}) if many else "auto",
            # a float64 network needs no casting: `prepare` makes it one and the views follow its parameters
            precision={"32": "32-true", "64": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision],
        )
        if many:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning)
                fabric.launch()
        return fabric


def _started() -> int | None:
    """Processes that torchrun or SLURM have started for this run; None where that is left to us."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else None
