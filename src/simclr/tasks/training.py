"""Settings and steps that all training tasks share."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from simclr.cli.parsing import parse
from simclr.data import Source
from simclr.errors import Error, SettingError
from simclr.models.weights import FILES
from simclr.optim import (
    Shape,
    check_optimizer,
    create_optimizer,
    extended_lr_factor,
    peak_lr,
    total_steps,
    warmup_steps,
)
from simclr.report import write_run_report
from simclr.runs.files import BAD, print_unreadable
from simclr.runs.machine import Machine
from simclr.runs.reading import file_hash
from simclr.runs.recipe import is_import_path, plain
from simclr.runs.results import provenance, run_folder
from simclr.runs.run import Run
from simclr.settings import check_settings, setting
from simclr.training.batches import Loading, Resident, Streamed, open_batches
from simclr.training.fit import Schedule
from simclr.training.order import ShardOrder
from simclr.training.sampler import BatchSampler
from simclr.training.session import is_finished
from simclr.training.trackers import TrackerName, check_tracker
from simclr.views import Views


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """Settings of every training task. Tasks change defaults with `default`, and nothing else."""

    command: ClassVar[str]
    """name of the task on the command line, in result files and in recipes"""
    start_field: ClassVar[str] = ""
    """name of the setting that holds the run to start from"""
    most_warmup: ClassVar[float] = 10
    """maximum of the default of `warmup_epochs`"""

    data: Any
    """training images: a folder, list, table, array file, tar files or named data set; in Python also any sequence"""
    out: Path | None = None
    """run folder to write or to resume (default: named after the inputs, as described above)"""
    fresh: bool = False
    """new start: the run in `out` is deleted once the new one has a checkpoint"""
    side: int | None = setting(None, at_least=1)
    """maximum shorter side, pixels, to which larger image files are reduced, in training when they are read: large
    photographs are then decoded once rather than in every epoch if they fit in memory (default: not reduced)"""
    optimizer: str = "lars"
    """optimizer: lars (papers, for pretraining), sgd with Nesterov momentum (v1, for fine-tuning), adamw, or the name
    of any optimizer of timm, such as muon, adan or lion"""
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    """further options of the optimizer, such as '{betas: [0.9, 0.95]}' of adamw"""
    lr: float = setting(0.3, above=0)
    """base learning rate: per 256 images with linear scaling, per sqrt(image) with sqrt"""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """scaling of the learning rate with the batch size"""
    momentum: float = setting(0.9, at_least=0, below=1)
    """momentum of lars and sgd"""
    weight_decay: float = setting(1e-6, at_least=0)
    """decay of weights, except biases and norms (paper: 1e-6 in pretraining, 0 in fine-tuning; v2: 1e-4)"""
    decay_biases: bool = False
    """decay of biases and norms too"""
    batch: int = setting(4096, at_least=1)
    """number of images in a step, over all processes"""
    epochs: float | int | None = setting(100, above=0)
    """number of passes over the images (default of fine-tuning: 60 for at most 2 % of the labels, otherwise 30)"""
    warmup_epochs: float | int | None = setting(None, at_least=0)
    """number of epochs in which the learning rate rises linearly from 0 (default: a tenth of `epochs`, at most 10 in
    pretraining and 20 in distillation; 0 in fine-tuning)"""
    lr_schedule: Shape = "cosine"
    """learning rate after the warm-up: cosine to 0 (papers), wsd (constant, then linear to 0 over the last part of the
    steps, `cooldown`) or constant"""
    cooldown: float = setting(0.2, above=0, at_most=1)
    """fraction of the steps in which wsd lowers the learning rate"""
    max_bad: float = setting(0.05, at_least=0, at_most=1)
    """maximum fraction of unreadable images; a run is never stopped for fewer than 20"""
    log_every: int = setting(20, at_least=1)
    """number of steps between lines of the log"""
    save_every: int = setting(500, at_least=1)
    """number of steps between checkpoints"""
    tracker: TrackerName | None = None
    """experiment tracker that receives the lines of the log too, if it is installed: tensorboard, wandb (offline unless
    WANDB_MODE is set), mlflow or trackio"""
    seed: int = 0
    """seed of all random draws"""
    machine: Machine = Machine()
    """devices, processes, precision and workers"""

    def __post_init__(self) -> None:
        if self.warmup_epochs is None:
            object.__setattr__(self, "warmup_epochs", min(self.most_warmup, (self.epochs or 0) / 10))
        check_settings(self)
        check_optimizer(self.optimizer)
        check_tracker(self.tracker)
        if self.epochs is not None and self.warmup_epochs > self.epochs:
            raise SettingError("warmup_epochs", f"at most epochs ({self.epochs:g})", self.warmup_epochs)

    @property
    @abstractmethod
    def folder(self) -> Path:
        """The run folder."""

    def peak_lr(self, batch: int) -> float:
        """Return the maximum learning rate of a run with this batch size."""
        return peak_lr(self.lr, batch, self.scaling)

    def schedule(self, images: int, batch: int | None = None, steps: int | None = None) -> Schedule:
        """Return the schedule of a run over `images` images, by default with the batch and epochs of the settings."""
        batch = batch or self.batch
        ends = [steps] if steps else self.ends(images, batch)
        warmup, peak = warmup_steps(images, batch, self.warmup_epochs), self.peak_lr(batch)
        return Schedule(
            steps=ends[-1],
            lr=lambda step: peak * extended_lr_factor(step, ends, warmup, self.lr_schedule, self.cooldown),
            seed=self.seed,
            log_every=self.log_every,
            save_every=self.save_every,
        )

    def ends(self, images: int, batch: int) -> list[int]:
        """Return the number of steps at the end of the run, and of each extension."""
        return [total_steps(images, batch, self.epochs)]

    def largest_batch(self, images: int, processes: int) -> int:
        """Return the batch size, reduced to what `images` images give all processes alike."""
        if images < processes:
            raise SettingError("machine.devices", f"at most the number of images ({images})", processes)
        return self.batch if self.batch <= images else images // processes * processes

    def create_optimizer(self, groups: list[dict], batch: int) -> torch.optim.Optimizer:
        """Return the optimizer of parameter groups."""
        options = self.optimizer_options
        return create_optimizer(self.optimizer, groups, lr=self.peak_lr(batch), momentum=self.momentum, options=options)

    def reduced(self, source: Source) -> Source:
        """Return the images with at most `side` pixels in the shorter side."""
        if self.side is not None and source.scaling is not None:
            raise SettingError("side", "absent with channels or keep_levels, whose images are not reduced", self.side)
        if self.side is not None and source.images is not None and self.side < min(source.images.shape[1:3]):
            raise SettingError("side", "absent for images in an array, which are not reduced", self.side)
        return source if self.side == source.side else dataclasses.replace(source, side=self.side)

    def open_batches(
        self, fabric: Fabric, source: Source, policies: Sequence[Views], batch: int, decode: str = "exact"
    ) -> Resident | Streamed:
        """Return this process's batches with one view of each image for each policy."""
        order = None if source.starts is None else ShardOrder(source.starts)
        sampler = BatchSampler(len(source), batch, self.seed, fabric.global_rank, fabric.world_size, order)
        loading = Loading(
            storage=self.machine.storage,
            workers=self.machine.worker_processes,
            decode=decode,
            max_bad=self.max_bad,
            compile=self.machine.compile,
        )
        return open_batches(self.reduced(source), policies, sampler, loading, fabric.device)

    def describe_schedule(self, steps: int, batch: int) -> str:
        """Return number and size of the steps and the learning rate as text."""
        return (
            f"{steps:,} steps of {batch}; peak learning rate {self.peak_lr(batch):.4g} "
            f"({self.optimizer}, {self.scaling}, {self.lr_schedule})"
        )


def default(name: str, value: Any) -> Any:
    """Return a field of `Training` with another default, for a task that redeclares it."""
    return dataclasses.field(default=value, metadata=Training.__dataclass_fields__[name].metadata)


def describe_data(source: Source, labels: Tensor | None = None, classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what identifies the images and, if any, the labels that a run learns from."""
    identity: dict[str, Any] = {"images": len(source), "fingerprint": source.fingerprint}
    if source.scaling is not None:
        identity["scaling"] = [list(source.scaling.low), list(source.scaling.high)]
    if labels is None:
        return identity
    digest = hashlib.blake2b("\n".join(classes).encode(errors="surrogateescape"), digest_size=16)
    digest.update(labels.numpy().tobytes())
    return {**identity, "labels": digest.hexdigest()}


def start_identity(start: Path, folder: Path) -> dict[str, Any]:
    """Return what identifies, among the data of the run in `folder`, the weights of the run `start` that it begins
    with: the hashes of its encoder and of its layers above the encoder, or those it recorded if they are gone."""
    weights = provenance(start).get("weights")
    if not weights:
        return {key: value for key, value in Run(folder).recorded_data.items() if key in ("init", "layers")}
    files = [path for name in FILES[1:] if (path := run_folder(start) / name).is_file()]
    return {"init": weights, "layers": "-".join(file_hash(path)[:12] for path in files)}


def starts_anew(start: Path, folder: Path) -> bool:
    """Return whether the run in `folder` is known to have begun with other weights than those of the run `start`."""
    recorded = Run(folder).recorded_data
    return any(recorded.get(key) not in (None, value) for key, value in start_identity(start, folder).items())


def close_run(fabric: Fabric, run: Run, result: dict[str, Any], save: Callable[[], None]) -> dict[str, Any]:
    """Write what every finished run holds, by the first process, and return the result; `save` writes the weights."""
    if fabric.is_global_zero:
        save()
        run.finish(result)
        print_unreadable(run.path / BAD, run.bad)
        write_run_report(run.path)
        print(f"wrote {run.path}")
    fabric.barrier()
    return result


def finished_result(fabric: Fabric, run: Run, steps: int | None = None) -> dict[str, Any] | None:
    """Return the result of a complete run, None for one to train; write its report if a kill prevented that. A run that
    ended before `steps` is extended; RunError if it has no checkpoint."""
    if not is_finished(run, fabric, steps):
        return None
    if fabric.is_global_zero and not (run.path / "report.html").exists():
        write_run_report(run.path)
    return run.result


def run_folder_for(command: str, data: Any) -> Path:
    """Return runs/COMMAND-DATA, the default folder of a run on `data`; below the images it is not read as data."""
    if not isinstance(data, str | Path):
        return Path("runs") / f"{command}-{type(data).__name__}"
    path = Path(str(data).rsplit(":", 1)[-1])
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return Path("runs") / f"{command}-{name or 'images'}"


@dataclass(frozen=True)
class NextTask:
    """Task of a chain that starts from the run of the task before it, with these settings."""

    task: type[Training]
    settings: Mapping[str, Any]

    def after(self, start: Path, folder: Path, common: Mapping[str, Any]) -> Training:
        """Return the task that starts from the run `start` and writes to `folder`, with the settings `common` too."""
        return self.task(**{**common, **self.settings, self.task.start_field: start, "out": folder})


TaskChain = tuple[Training | NextTask, ...]
"""A training task and the tasks that follow it; the last one's network is evaluated."""


def build_chain(chain: TaskChain, folders: Sequence[Path], first: Mapping, common: Mapping) -> tuple[Training, ...]:
    """Return the tasks of a chain with their run folders: the first with the settings `first`, those that follow with
    `common` and their own."""
    tasks: list[Training] = []
    for step, folder in zip(chain, folders, strict=True):
        if isinstance(step, NextTask):
            tasks.append(step.after(tasks[-1].folder, folder, common))
        else:
            tasks.append(dataclasses.replace(step, **first, out=folder))
    return tuple(tasks)


def typed(task: type[Training], name: str, settings: Mapping[str, Any], decided: set[str]) -> dict[str, Any]:
    """Return settings of a task, which the setting `name` of a chain holds, with the types that they have in the task;
    raise SettingError for those that are unknown or that the chain has `decided`."""
    allowed = f"settings of `simclr {task.command}` that the chain does not decide"
    if decided := decided & settings.keys():
        raise SettingError(name, allowed, ", ".join(sorted(decided)))
    if is_import_path(settings.get("encoder")):
        raise SettingError(name, "encoders by name, since an import path is code", settings["encoder"])
    texts = {key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in settings.items()}
    words = [f"--{key}={text}" for key, text in texts.items()]
    try:
        built = parse(task, task.command, (), [f"--{task.start_field}=.", "--data=.", *words], False)
    except Error as error:
        raise SettingError(name, allowed, remedy=str(error)) from None
    return {key: getattr(built, key) for key in settings}
