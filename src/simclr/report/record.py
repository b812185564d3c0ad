"""Record of a run: the content of its folder and the quantities derived from it."""

import hashlib
import importlib
import math
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from simclr.cli.commands import COMMANDS
from simclr.losses.objective import Objective
from simclr.optim import total_steps, warmup_steps
from simclr.runs.recipe import flatten, plain
from simclr.views import Views, count_key_views, view_policies


@dataclass(frozen=True)
class Measurement:
    """One result file, with the fields of each row that `simclr.runs.results.Result` describes."""

    file: str
    """path within the run folder"""
    command: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    environment: dict[str, Any]
    older: bool
    """whether a later measurement took its name"""

    @property
    def data(self) -> str:
        """The data set that was measured, as given to the command."""
        data = self.settings.get("test") or self.settings.get("data", "")
        return ", ".join(map(str, data)) if isinstance(data, list) else str(data)

    def data_of(self, row: dict[str, Any]) -> str:
        """Return the data set of one row, where a command measures several."""
        return str((row.get("detail") or {}).get("data") or self.data)


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder."""

    path: Path
    kind: str
    """command that wrote it: pretrain, finetune, distill ...; encoder for weights without a command"""
    recipe: dict[str, Any]
    starts: list[dict[str, Any]]
    data: dict[str, Any]
    lines: list[dict[str, Any]]
    result: dict[str, Any] | None
    card: dict[str, Any]
    measurements: list[Measurement]
    bad: list[tuple[str, str]]
    pictures: list[Path]
    truncated: int
    """number of lines of the log that could not be read"""
    unreadable: list[str] = field(default_factory=list)
    """files that could not be read"""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def current(self) -> list[Measurement]:
        """The measurements whose name no later one took."""
        return [measurement for measurement in self.measurements if not measurement.older]

    @cached_property
    def segments(self) -> list[list[dict[str, Any]]]:
        """The lines of the log by the start of the run that wrote them: the clock of each begins at 0."""
        segments: list[list[dict[str, Any]]] = []
        last = math.inf
        for line in self.lines:
            seconds = line.get("seconds", last)
            if not segments or seconds < last:
                segments.append([])
            segments[-1].append(line)
            last = seconds
        return segments

    @property
    def seconds(self) -> float | int:
        """Training time of all starts, without steps that were lost."""
        return sum(max((line.get("seconds", 0.0) for line in lines), default=0.0) for lines in self.segments)

    @property
    def step(self) -> int:
        """Last step in the log."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def images(self) -> int | None:
        """Number of training images."""
        return self.data.get("images") or (self.result or {}).get("images")

    @property
    def batch(self) -> int | None:
        """Number of images in a step, over all processes."""
        batch = self.recipe.get("batch")
        if not isinstance(batch, int) or self.kind == "pretrain" or self.images is None:
            return batch if isinstance(batch, int) else None
        return min(batch, self.images // self.processes * self.processes)

    @property
    def processes(self) -> int:
        """Number of training processes of the last start."""
        recorded = self.starts[-1].get("processes") if self.starts else None
        counts = [self.settings.get(f"machine.{name}") for name in ("devices", "nodes")]
        return recorded or math.prod(count for count in counts if isinstance(count, int) and count > 0)

    @property
    def epoch(self) -> float | None:
        """Number of steps in one pass over the images."""
        return self.images / self.batch if self.images and self.batch else None

    @property
    def steps(self) -> int | None:
        """Number of steps of the whole run, its extensions included, if known."""
        done = (self.result or {}).get("steps")
        if self.recipe.get("steps") and done is None:
            return self.recipe["steps"]
        if self.epoch and is_number(self.recipe.get("epochs")) and (done is None or self.recipe.get("extend")):
            epochs = sum([self.recipe["epochs"], *(self.recipe.get("extend") or ())])
            return max(total_steps(self.images, self.batch, epochs), self.recipe.get("min_steps") or 0)
        return done

    @property
    def warmup(self) -> int:
        """Number of steps of the warm-up, as far as it is known."""
        epochs = self.recipe.get("warmup_epochs")
        known = self.images and self.batch and is_number(epochs)
        return warmup_steps(self.images, self.batch, epochs) if known else 0

    @property
    def trained(self) -> bool:
        """Whether the folder is of a training task: a converted checkpoint is not."""
        return bool(self.recipe.get("epochs") or self.recipe.get("batch") or self.lines)

    @property
    def finished(self) -> bool:
        """Whether training is complete; that of a run that is being extended is not."""
        return not self.trained or (self.result is not None and self.result.get("steps") in (None, self.steps))

    @property
    def chance(self) -> float | None:
        """NT-Xent at chance level, nats; None for runs with another loss, a queue or a changing temperature."""
        if self.recipe.get("queue") or self.recipe.get("temperature_min") is not None:
            return None
        if self.kind != "pretrain" or (self.batch or 0) < 2 or self.recipe.get("loss", "nt_xent") != "nt_xent":
            return None
        return self._objective.chance(self.batch, self.key_views)

    @property
    def _objective(self) -> Objective:
        return Objective(negatives="other" if self.recipe.get("negatives") == "other" else "both")

    @property
    def view_policies(self) -> tuple[Views, ...]:
        """The augmentation policy of each view; empty for two equal views."""
        policies = self.recipe.get("policies")
        return view_policies(Views(size=self.settings["views.size"]), policies) if policies else ()

    @property
    def key_views(self) -> int:
        """Number of views of an image that anchors are compared with."""
        policies = self.view_policies
        return count_key_views(policies, self.recipe.get("key_views", "all")) if policies else 2

    @property
    def chance_formula(self) -> str:
        """The loss at chance level as a formula, N the images of a batch."""
        k = self._objective.count_negatives(2, self.key_views)
        return "ln N" if k == 1 else f"ln({k}N - {k - 1})"

    @property
    def contrastive_chance(self) -> float | None:
        """Contrastive top-1 at chance level, which each process measures within its own part of the batch."""
        local = (self.batch or 0) // self.processes
        return 1 / (2 * local - 1) if self.kind == "pretrain" and local else None

    @cached_property
    def columns(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of each line that has a number of a name, by name in the order of the log."""
        columns: dict[str, list[tuple[int, float]]] = {}
        for line in self.lines:
            for name, value in line.items():
                if is_number(value):
                    columns.setdefault(name, []).append((line["step"], float(value)))
        return columns

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of each line that has a number of this name."""
        return self.columns.get(name, [])

    def last(self, name: str) -> float | None:
        """Return the last finite value of this name: that of the result, else of the log."""
        value = (self.result or {}).get(name)
        if is_number(value) and math.isfinite(value):
            return value
        return next((value for _, value in reversed(self.series(name)) if math.isfinite(value)), None)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The default settings of the task, flat; empty for an unknown task."""
        task = task_of(self.kind)
        values = {} if task is None else {
            f.name: plain(f.default if f.default is not MISSING else f.default_factory())
            for f in fields(task) if f.default is not MISSING or f.default_factory is not MISSING
        }  # fmt: skip
        return dict(flatten(values))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The recipe, flat, with the default values of settings that did not exist when it was written."""
        saved = dict(flatten(self.recipe))
        groups = {name.rsplit(".", 1)[0] for name in saved if "." in name}
        return saved | {
            name: value for name, value in self.defaults.items() if name not in saved and name not in groups
        }

    @cached_property
    def weights(self) -> str | None:
        """Hash of the encoder's weights, as result files record it."""
        path = self.path / "encoder.safetensors"
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def task_of(kind: str) -> type | None:
    """Return the task class of a command."""
    if kind not in COMMANDS:
        return None
    module, name = COMMANDS[kind].task.split(":")
    return getattr(importlib.import_module(module), name)


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON or YAML file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
