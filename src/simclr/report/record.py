"""What was found in a run folder, and what follows from it: how far it came, what chance is, which settings it had."""

import hashlib
import importlib
import math
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from simclr.cli.commands import COMMANDS
from simclr.losses.objective import Objective
from simclr.optim import total_steps
from simclr.runs.recipe import flatten, plain


@dataclass(frozen=True)
class Measurement:
    """One file of results, as `simclr.measuring.report` writes it; rows as they stand there."""

    file: str
    """its path within the run folder"""
    task: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    environment: dict[str, Any]
    older: bool
    """whether a later measurement took its name"""

    @property
    def data(self) -> str:
        """What it was measured on, as it was asked for."""
        data = self.settings.get("test") or self.settings.get("data", "")
        return ", ".join(map(str, data)) if isinstance(data, list) else str(data)


@dataclass(frozen=True)
class Folder:
    """A run folder that was read."""

    path: Path
    kind: str
    """the task that filled it: pretrain, finetune, distill ...; encoder, where weights came without one"""
    recipe: dict[str, Any]
    starts: list[dict[str, Any]]
    data: dict[str, Any]
    lines: list[dict[str, Any]]
    result: dict[str, Any] | None
    card: dict[str, Any]
    measurements: list[Measurement]
    bad: list[tuple[str, str]]
    pictures: list[Path]
    torn: int
    """lines of the log that could not be read"""
    unreadable: list[str] = field(default_factory=list)
    """files that could not be read"""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def segments(self) -> list[list[dict[str, Any]]]:
        """The lines of each start of the run that trained: its clock begins at 0."""
        found: list[list[dict[str, Any]]] = []
        last = math.inf
        for line in self.lines:
            seconds = line.get("seconds", last)
            if not found or seconds < last:
                found.append([])
            found[-1].append(line)
            last = seconds
        return found

    @property
    def seconds(self) -> float:
        """Training time of all starts, as far as their steps were kept."""
        return sum(max((line.get("seconds", 0.0) for line in lines), default=0.0) for lines in self.segments)

    @property
    def step(self) -> int:
        """The last step in the log."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def images(self) -> int | None:
        """Images learned from."""
        return self.data.get("images") or (self.result or {}).get("images")

    @property
    def batch(self) -> int | None:
        """Images in a step, over all processes."""
        batch = self.recipe.get("batch")
        if not isinstance(batch, int) or self.kind == "pretrain" or self.images is None:
            return batch if isinstance(batch, int) else None
        return min(batch, self.images // self.processes * self.processes)

    @property
    def processes(self) -> int:
        """Training processes of the last start."""
        told = self.starts[-1].get("processes") if self.starts else None
        asked = [self.settings.get(f"machine.{name}") for name in ("devices", "nodes")]
        return told or math.prod(count for count in asked if isinstance(count, int) and count > 0)

    @property
    def epoch(self) -> float | None:
        """Steps in one pass over the images."""
        return self.images / self.batch if self.images and self.batch else None

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, where that is known."""
        if self.result and "steps" in self.result:
            return self.result["steps"]
        if self.recipe.get("steps"):
            return self.recipe["steps"]
        if self.epoch and is_number(self.recipe.get("epochs")):
            return total_steps(self.images, self.batch, self.recipe["epochs"])
        return None

    @property
    def trained(self) -> bool:
        """Whether there was training at all: a converted checkpoint has none."""
        return bool(self.recipe.get("epochs") or self.recipe.get("batch") or self.lines)

    @property
    def finished(self) -> bool:
        return self.result is not None or not self.trained

    @property
    def chance(self) -> float | None:
        """NT-Xent of chance, nats; None for runs by another loss."""
        if self.kind != "pretrain" or (self.batch or 0) < 2 or self.recipe.get("loss", "nt_xent") != "nt_xent":
            return None
        return Objective(negatives=self.recipe.get("negatives", "both")).chance(self.batch)

    @property
    def chance_form(self) -> str:
        """The same as a formula, N the images of a batch."""
        return "ln N" if self.recipe.get("negatives") == "other" else "ln(2N - 1)"

    @property
    def contrastive_chance(self) -> float | None:
        """Contrastive top-1 of chance, which each process measures among its own part of the batch."""
        own = (self.batch or 0) // self.processes
        return 1 / (2 * own - 1) if self.kind == "pretrain" and own else None

    @cached_property
    def columns(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of each line that has a number of a name, by names in the order of the log."""
        found: dict[str, list[tuple[int, float]]] = {}
        for line in self.lines:
            for name, value in line.items():
                if is_number(value):
                    found.setdefault(name, []).append((line["step"], float(value)))
        return found

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of each line that has a number of this name."""
        return self.columns.get(name, [])

    def last(self, name: str) -> float | None:
        """The last finite value of this name: that of the result, else of the log."""
        value = (self.result or {}).get(name)
        if is_number(value) and math.isfinite(value):
            return value
        return next((value for _, value in reversed(self.series(name)) if math.isfinite(value)), None)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The recipe of the task as it is without any setting, flat; empty where the task is not known."""
        task = task_of(self.kind)
        given = {} if task is None else {
            f.name: plain(f.default if f.default is not MISSING else f.default_factory())
            for f in fields(task) if f.default is not MISSING or f.default_factory is not MISSING
        }  # fmt: skip
        return dict(flatten(given))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The recipe, flat; with the defaults of settings that it is too old to have."""
        own = dict(flatten(self.recipe))
        parts = {name.rsplit(".", 1)[0] for name in own if "." in name}
        return own | {name: value for name, value in self.defaults.items() if name not in own and name not in parts}

    @cached_property
    def weights(self) -> str | None:
        """Hash of the encoder's weights as measurements record it."""
        path = self.path / "encoder.safetensors"
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def task_of(kind: str) -> type | None:
    """The class of a task by its command."""
    if kind not in COMMANDS:
        return None
    module, name = COMMANDS[kind].task.split(":")
    return getattr(importlib.import_module(module), name)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON or YAML file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
