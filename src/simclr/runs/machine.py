"""What a run runs on: devices, processes, precision, worker processes. Lightning Fabric does the work."""

import inspect
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from simclr.errors import SettingError
from simclr.runs.allocation import keep_freed_memory
from simclr.runs.environment import cores
from simclr.settings import check_settings, setting

# torch 2.14 gave the setting another name and warns of the old one
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a task computes: kind of device and number of decoding processes."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """kind of device; auto uses a GPU if there is one"""
    workers: int = setting(-1, at_least=-1)
    """number of processes that decode images; -1: one fewer than the available CPU cores, at most 16"""

    def __post_init__(self) -> None:
        check_settings(self, "machine.")

    @property
    def kind(self) -> str:
        """The accelerator in use: cuda, mps or cpu."""
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise SettingError("machine.accelerator", "cpu or auto, since torch finds no CUDA device", "cuda")
        if self.accelerator == "mps" and not torch.backends.mps.is_available():
            raise SettingError("machine.accelerator", "cpu or auto, since torch finds no MPS device", "mps")
        if self.accelerator != "auto":
            return self.accelerator
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    @property
    def local_device(self) -> str:
        """The device of this process among those that torchrun or SLURM started on this machine."""
        rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
        return f"cuda:{rank}" if rank and self.kind == "cuda" else self.kind

    @property
    def place(self) -> tuple[int, int]:
        """Rank of this process and number of processes that torchrun or SLURM started."""
        if os.environ.get("WORLD_SIZE"):
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if SLURMEnvironment.detect():
            return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        return 0, 1

    def join(self) -> bool:
        """Return whether the processes that torchrun or SLURM started work together on a command that evaluates; the
        first call forms their group. False in a command that trains, which has formed one before."""
        keep_freed_memory()
        if not _form_group():
            return False
        if self.kind == "cuda":
            torch.cuda.set_device(self.local_device)
        return True

    @property
    def worker_processes(self) -> int:
        """Number of decoding processes of each process that computes."""
        return self.workers if self.workers >= 0 else max(0, min(cores() // self._processes_here - 1, 16))

    @property
    def _processes_here(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Machine(Device):
    """Devices, processes and precision of a training task. Processes are started by the task itself (`devices`), or
    beforehand by torchrun or SLURM.
    """

    devices: int = setting(1, at_least=1)
    """number of processes on this node, one per device; the batch is divided among them"""
    nodes: int = setting(1, at_least=1)
    """number of nodes"""
    precision: Literal["auto", "32", "bf16", "16", "64"] = "auto"
    """precision of the forward and backward pass; auto: bf16 on a GPU that supports it, otherwise 32 (convolutions on a
    GPU may then round to TF32, PyTorch's default)"""
    timeout: float = setting(1800.0, above=0)
    """time that a process waits for the others in one operation, s; one that has died is noticed within 70 s"""
    storage: Literal["auto", "resident", "streamed"] = "auto"
    """place where decoded images are kept: resident on the device, or streamed from worker processes; auto: resident if
    they fit and are of one size (streamed crops are rounded to 8 bits, so results differ slightly and a run resumes
    with its own), else streamed, from files that are decoded once if they fit in a quarter of the free memory"""
    compile: bool = False
    """compile the network, and on a GPU the views, with torch.compile; on one GPU a pretraining without micro-batches
    starts the kernels of its network together, as CUDA graphs"""
    recompute: bool = False
    """keep only the activations at the ends of blocks and compute the others again: less memory, a third more
    computation"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.recompute:
            raise SettingError("machine.compile", "false when machine.recompute is true", True)

    @property
    def processes(self) -> int:
        """Number of training processes on all nodes."""
        return self._layout[0] * self._layout[1]

    @property
    def _processes_here(self) -> int:
        return self._layout[0]

    @property
    def _layout(self) -> tuple[int, int]:
        """Training processes on each node, and nodes: as torchrun started them, else as asked for."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or 0)
        if not here:
            return self.devices, self.nodes
        return here, int(os.environ.get("WORLD_SIZE") or here) // here

    @property
    def precision_in_use(self) -> str:
        """The precision: that of the settings, or the one that auto stands for on this machine."""
        if self.precision != "auto":
            return self.precision
        native = self.kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "32"

    def launch(self) -> Fabric:
        """Start the processes and join them; each of them returns from here with its own rank."""
        keep_freed_memory()
        precision = self.precision_in_use
        if precision == "64" and self.kind == "mps":
            raise SettingError("machine.precision", "auto, 32, bf16 or 16 on MPS, which has no float64", "64")
        if precision == "16" and self.kind == "cpu":
            raise SettingError("machine.precision", "auto, 32, bf16 or 64 on a CPU", "16")
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        devices, nodes = self._layout
        many = devices * nodes > 1
        if (started := _started()) not in (None, devices * nodes):  # each would believe that it is alone
            raise SettingError(
                "machine.devices x machine.nodes",
                f"the number of processes started by torchrun or SLURM ({started})",
                f"{devices} x {nodes}",
            )
        if many and started is None and not _can_start_again():
            raise SettingError(
                "machine.devices",
                "1 in an interactive session or a program without a file, which cannot be started once more",
                devices,
                "Use the command line, or a script that torchrun starts",
            )
        fabric = Fabric(
            accelerator=self.kind,
            devices=devices,
            num_nodes=nodes,
            # buffers hold synchronised statistics, equal on every rank: nothing to broadcast
            strategy=DDPStrategy(timeout=timedelta(seconds=self.timeout), **{_SYNC_BUFFERS: False}) if many else "auto",
            # a float64 network needs no casting: `prepare` makes it one and the views follow its parameters
            precision={"32": "32-true", "64": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision],
        )
        if many:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning)
                fabric.launch()
        return fabric


@cache
def _form_group() -> bool:
    """Form the process group of a command that evaluates; return False if there is one or there are no processes."""
    if dist.is_initialized() or (world := _started() or 1) == 1:
        return False
    rank, address = Device().place[0], "env://"
    if not os.environ.get("WORLD_SIZE"):
        node = SLURMEnvironment()
        address = f"tcp://{node.main_address}:{node.main_port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    return True


def is_first_process() -> bool:
    """Return whether this is the first process of its group or, without one, of those that torchrun or SLURM has
    started."""
    return (dist.get_rank() if dist.is_initialized() else Device().place[0]) == 0


def _can_start_again() -> bool:
    """Return whether other processes can run this program: a module, or a script in a file. Lightning runs the command
    of this process again, which in a notebook or for a program on standard input is another one, and ends this process
    if one of them fails."""
    main = sys.modules["__main__"]
    if hasattr(sys, "ps1") or sys.flags.interactive or "ipykernel" in sys.modules:
        return False
    file = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or (file is not None and os.path.isfile(file))


def _started() -> int | None:
    """Processes that torchrun or SLURM have started for this run; None where that is left to us."""
    if os.environ.get("WORLD_SIZE"):  # set but empty counts as not set
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else None
