"""What a run folder holds, as far as it can be read: no file in it is needed, and of a torn one what is whole is taken."""

import csv
import hashlib
import importlib
import io
import json
import math
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from simclr.cli import COMMANDS
from simclr.optim import total_steps
from simclr.outputs import PICTURES
from simclr.run import flatten, plain

SIGNS = ("recipe.yaml", "card.json", "metrics.jsonl", "result.json")  # any of them makes a folder a run
NO_MEASUREMENTS = ("card.json", "data.json", "environment.json", "report.json")


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
        if self.epoch and _is_number(self.recipe.get("epochs")):
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
        """Contrastive loss of chance, nats: ln(2N - 1)."""
        return math.log(2 * self.batch - 1) if self.kind == "pretrain" and (self.batch or 0) > 1 else None

    @property
    def contrastive_chance(self) -> float | None:
        """Contrastive top-1 of chance, which each process measures among its own part of the batch."""
        own = (self.batch or 0) // self.processes
        return 1 / (2 * own - 1) if self.kind == "pretrain" and own else None

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of each line that has a number of this name."""
        return [(line["step"], float(line[name])) for line in self.lines if _is_number(line.get(name))]

    def last(self, name: str) -> float | None:
        """The last finite value of this name: that of the result, else of the log."""
        value = (self.result or {}).get(name)
        if _is_number(value) and math.isfinite(value):
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
        return own | {k: v for k, v in self.defaults.items() if k.split(".")[0] not in self.recipe or k in own} | own

    @cached_property
    def weights(self) -> str | None:
        """Hash of the encoder's weights as measurements record it."""
        path = self.path / "encoder.safetensors"
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def find_runs(paths: list[Path]) -> list[Path]:
    """The run folders that are meant: each path, its folder if it is a file of weights, or the runs inside it.

    ValueError for a path that holds none.
    """
    found: list[Path] = []
    for path in paths:
        path = path.parent if path.suffix == ".safetensors" else path
        if not path.is_dir():
            raise ValueError(f"run: there is no folder {path}")
        inside = [path] if is_run(path) else [p for p in sorted(path.iterdir()) if p.is_dir() and is_run(p)]
        if not inside:
            raise ValueError(f"run: {path} is no run folder and holds none; runs have a {' or a '.join(SIGNS[:3])}")
        found += [p for p in inside if p not in found]
    return found


def is_run(path: Path) -> bool:
    """Whether a folder is a run, or holds measurements of one."""
    return any((path / name).is_file() for name in SIGNS) or bool(_measurements(path, [], below=False))


def read_folder(path: Path) -> Folder:
    """Everything a page shows of a run, but for the pixels of its pictures."""
    unreadable: list[str] = []
    text = _text(path / "recipe.yaml", unreadable)
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        recipe = None
        unreadable.append("recipe.yaml")
    recipe = recipe if isinstance(recipe, dict) else {}
    result = _json(path / "result.json", dict, unreadable)
    card = _json(path / "card.json", dict, unreadable) or {}
    lines, torn = _lines(path / "metrics.jsonl")
    if result and isinstance(result.get("step"), int):  # the last check stands in the result alone
        lines.append({k: v for k, v in result.items() if k in ("step", "knn_top1") or k.startswith("health_")})
    return Folder(
        path=path,
        kind=_kind(text, recipe, result, card),
        recipe=recipe,
        starts=[start for start in _json(path / "environment.json", list, unreadable) or [] if isinstance(start, dict)],
        data=_json(path / "data.json", dict, unreadable) or {},
        lines=lines,
        result=result,
        card=card,
        measurements=_measurements(path, unreadable),
        bad=_bad(path / "bad_files.csv"),
        pictures=[p for where in (path, path / "pictures") if where.is_dir() for p in sorted(where.iterdir())
                  if p.suffix.lower() in PICTURES and p.is_file()],
        torn=torn,
        unreadable=unreadable,
    )  # fmt: skip


def task_of(kind: str) -> type | None:
    """The class of a task by its command."""
    if kind not in COMMANDS:
        return None
    module, name = COMMANDS[kind][0].split(":")
    return getattr(importlib.import_module(module), name)


def _kind(text: str, recipe: dict, result: dict | None, card: dict) -> str:
    """The recipe's first line names the task, as do the result and the card; of a result without them its fields do."""
    if text.startswith("# simclr ") and (word := text.split(maxsplit=3)[2].rstrip(":")) in COMMANDS:
        return word
    named = (result or {}).get("task") or card.get("source", {}).get("task")
    return named or ("pretrain" if "views" in recipe and "batch" in recipe else "encoder")


def _text(path: Path, unreadable: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        unreadable.append(path.name)
        return ""


def _json(path: Path, kind: type, unreadable: list[str]) -> Any:
    text = _text(path, unreadable)
    if not text:
        return None
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, kind):
        unreadable.append(path.name)
        return None
    return content


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a log that are whole, and how many are not."""
    lines, torn = [], 0
    for text in _text(path, []).splitlines():
        try:
            line = json.loads(text) if text.strip() else None
        except json.JSONDecodeError:
            line = {}
        if line is None:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        else:
            torn += 1
    return lines, torn


def _measurements(path: Path, unreadable: list[str], below: bool = True) -> list[Measurement]:
    """Result files of a folder and of those right below it, such as a fine-tuning of the run; older ones last."""
    found = []
    for file in sorted([*path.glob("*.json"), *(path.glob("*/*.json") if below else ())]):
        if file.name in NO_MEASUREMENTS:
            continue
        content = _json(file, dict, unreadable if file.parent == path else [])
        rows = (content or {}).get("results")
        if not isinstance(rows, list):
            continue
        rows = [row for row in rows if isinstance(row, dict) and _is_number(row.get("value")) and "metric" in row]
        if rows:
            named = file.with_suffix("")
            found.append(
                Measurement(
                    file=file.relative_to(path).as_posix(),
                    task=str(content.get("task", named.name)),
                    settings=content.get("settings") or {},
                    rows=rows,
                    environment=content.get("environment") or {},
                    older=named.suffix[1:].isdigit() and named.with_suffix(".json").exists(),
                )
            )
    return sorted(found, key=lambda m: m.older)


def _bad(path: Path) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(_text(path, []), newline=""))
    return [(row.get("path") or "", row.get("reason") or "") for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
