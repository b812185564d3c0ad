"""Run folder: the settings, the progress and the result of a training task.

recipe.yaml        the task's settings, usable as --config
environment.json   versions, hardware and the command of each start
data.json          number of images the run learns from, and their fingerprint
metrics.jsonl      one JSON object per line
tracker.json       name of the run in each experiment tracker, if there is one; tensorboard/ and wandb/ are theirs
bad_files.csv      images that could not be read, if there are any
checkpoints/       last.pt and previous.pt: everything needed to resume; tensors and plain types only
encoder.safetensors, head.safetensors, card.json, result.json, report.html   written at the end
result.npz         classes and predictions of the test images of a run with labels, for the report
"""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from simclr.errors import RunError
from simclr.runs import replacement
from simclr.runs.checkpoint import Checkpoints
from simclr.runs.environment import environment, is_restart
from simclr.runs.files import OF_CELL, printable, require_folder_path, unguard_cell, write_atomically, write_unreadable
from simclr.runs.lock import NAME as LOCK
from simclr.runs.lock import RunLock
from simclr.runs.log import Follower, Log
from simclr.runs.reading import file_hash, read_yaml
from simclr.runs.recipe import changed_settings, default_settings, flatten, plain
from simclr.runs.storage import move

OWN = ("encoder.safetensors", "head.safetensors", "supervised.safetensors", "card.json", "report.html", "pictures",
       "bad_files.csv", "metrics.jsonl", "result.json", "result.npz", "checkpoints", "data.json", "environment.json",
       "recipe.yaml", "tracker.json", "tensorboard", "wandb")  # fmt: skip
WEIGHTS = ("encoder.safetensors", "head.safetensors", "supervised.safetensors", "card.json")
WHERE = {"tracker"} | {
    f"machine.{name}" for name in ("accelerator", "devices", "nodes", "workers", "storage", "compile", "recompute")
}
OF_INPUTS = {"data": ("fingerprint",), "init": ("init",), "run": ("init", "layers"), "teacher": ("init", "layers")}
"""settings that are paths -> what identifies the files there"""
EXTENSIONS = "extend"  # setting, a list, to which a later start may add
REMEDY = "Repeat its settings to resume, choose another --out, or start over with --fresh"


class Run:
    """The folder of a training task. Of several processes only the one with `writes` changes it."""

    def __init__(self, path: Path, *, writes: bool = False) -> None:
        self.path, self.writes = Path(path), writes
        self._fresh = self._begun = False
        self._recipe: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        self._data: dict[str, Any] = {}
        self._command = ""
        self.open_follower: Callable[[Run], Follower] | None = None
        self._log = Log(self.path / "metrics.jsonl")
        self._lock = RunLock(self.path)
        self._checkpoints = Checkpoints(self.path / "checkpoints")

    @classmethod
    def start(
        cls, path: Path, task: Any, *, data: dict[str, Any] | None = None, fresh: bool = False, writes: bool = True
    ) -> "Run":
        """Begin a run of `task` in `path`, or resume the one that is there: `open`, then `begin`."""
        run = cls.open(path, task, data=data, fresh=fresh, writes=writes)
        run.begin()
        return run

    @classmethod
    def open(
        cls, path: Path, task: Any, *, data: dict[str, Any] | None = None, fresh: bool = False, writes: bool = True
    ) -> "Run":
        """Return the run of `task` in `path` after checks that change nothing: a refused command leaves nothing behind;
        `begin` takes the lock of the folder and writes the settings.

        Once it has a checkpoint or a result, the settings saved there must equal those of `task`, except for those that
        say where it runs rather than what it computes, and so must `data`, the description of the images it learns
        from. Where the images are the same, their path may differ. `fresh` replaces what an earlier run left in the
        folder, and nothing else; the old run is kept until the new one has a checkpoint. A restart by torchrun or a
        requeue by SLURM resumes, whatever `fresh` says.
        """
        run = cls(path, writes=writes)
        run._fresh = fresh and not is_restart()
        run._command, run._data = task.command, data or {}
        run._recipe = {name: value for name, value in plain(task).items() if name not in ("out", "fresh")}
        if not isinstance(getattr(task, "data", ""), str | Path):  # an object in memory has no path
            run._recipe["data"] = type(task.data).__name__
        run._defaults = default_settings(task)
        require_folder_path(run.path)
        if writes and run.path.is_dir() and any(run.path.iterdir()):
            with run._locked():
                run._check()
        return run

    def begin(self) -> None:
        """Take the lock of the folder, move the run that `fresh` replaces, and write the settings; once."""
        fresh, self._fresh = self._fresh, False
        if self._begun or not (self.writes and self._recipe):
            return
        self._begun = True
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._fresh = fresh
            self._check()  # again, since another process may have written since
            self._fresh = False
            if fresh:
                replacement.replace(self.path, OWN, lambda: self.has_progress)
                self._report_kept()
            header = f"# simclr {self._command}: the settings of this run, usable as --config\n"
            text = yaml.safe_dump(self._recipe, sort_keys=False, allow_unicode=True)
            write_atomically(self.path / "recipe.yaml", header + text)
            write_atomically(self.path / "data.json", json.dumps(self._data) + "\n")
            starts = self._read_json("environment.json", list) or []
            write_atomically(self.path / "environment.json", json.dumps([*starts, environment()], indent=2) + "\n")
            self._log.follower = self.open_follower(self) if self.open_follower else None
        except BaseException:
            self.release()
            raise

    def release(self, result: Mapping[str, Any] | None = None) -> None:
        """Release the lock of the folder; `result` is that of a finished run."""
        self._log.close(result)
        self._lock.release()

    @contextlib.contextmanager
    def _locked(self) -> Any:
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _check(self) -> None:
        """Raise RunError unless a run can begin in this folder or the one in it can be resumed."""
        names = {path.name for path in self.path.iterdir()}
        if not any(name in OWN or name in (replacement.WHOLE, replacement.MOVING) for name in names):
            strangers = {name for name in names - {LOCK, *OF_CELL} if name.removesuffix(".partial") not in OWN}
            if strangers:
                raise RunError(self.path, "holds other files and no run", "Choose an empty or new folder for --out")
        replacement.recover(self.path, OWN, lambda: self.has_progress, self._fresh)
        if not self._fresh and self.has_progress:
            self._check_agreement()

    @property
    def has_progress(self) -> bool:
        """Whether there is something to resume: a command that was refused leaves at most a recipe."""
        return self.has_checkpoint or (self.path / "result.json").exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, whole or damaged."""
        return any((self.path / "checkpoints" / name).exists() for name in ("last.pt", "previous.pt"))

    def _report_kept(self) -> None:
        if names := {path.name for path in self.path.iterdir() if path.name[0] != "."} - {*OWN, *OF_CELL}:
            print(f"kept in {self.path}, from before: {', '.join(sorted(names))}")

    def _check_agreement(self) -> None:
        saved = self._saved_recipe()
        changes = changed_settings(saved, self._recipe, self._defaults)
        seen = self._read_json("data.json", dict)
        known = {key: value for key, value in (seen or {}).items() if value is not None}
        same = {key for key, value in known.items() if self._data.get(key) == value}
        ignored = WHERE | {name for name, keys in OF_INPUTS.items() if same.issuperset(keys)}
        before, now = changes.get(EXTENSIONS, ([], []))
        ignored |= {EXTENSIONS} if isinstance(before, list) and now[: len(before)] == before else set()
        if saved and (changed := tuple(name for name in changes if name not in ignored)):
            texts = [f"{name} was {changes[name][0]!r} and is now {changes[name][1]!r}" for name in changed]
            raise RunError(self.path, f"holds a run with other settings: {'; '.join(texts)}", REMEDY, changed)
        if changed := [name for name, value in (seen or {}).items() if self._data.get(name) != value]:
            counts = f"{seen.get('images')} when the run began, {self._data.get('images')} now"
            what = "weights to start from" if {"init", "layers"} & {*changed} else f"images or their labels ({counts})"
            raise RunError(self.path, f"the {what} have changed", REMEDY, tuple(changed))

    @property
    def _identity(self) -> dict[str, Any]:
        """The settings and the data of the run, by which a checkpoint is known to belong to it."""
        settings = {k: v for k, v in flatten(self._recipe) if k not in {*WHERE, *OF_INPUTS, EXTENSIONS}}
        return {**settings, **{f"data.{name}": value for name, value in self._data.items()}}

    # small files

    @property
    def recorded_data(self) -> dict[str, Any]:
        """What identifies the images and the weights that the run began with; empty if there is no record."""
        return self._read_json("data.json", dict) or {}

    def _saved_recipe(self) -> dict[str, Any]:
        path = self.path / "recipe.yaml"
        with contextlib.suppress(RunError):
            saved = read_yaml(path, RunError) if path.is_file() else {}
            if isinstance(saved, dict):
                return saved
        self._set_damaged_aside(path)
        return {}

    def _read_json(self, name: str, kind: type) -> Any:
        """Return the content of a JSON file; None if there is none, or none that can be read."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, kind):
                return content
        except (ValueError, RecursionError):
            pass
        self._set_damaged_aside(path)
        return None

    def _set_damaged_aside(self, path: Path) -> None:
        """Rename a file that cannot be read: it is evidence, and no reason to stop."""
        if self.writes:
            print(f"{printable(path)} is damaged; kept as {path.name}.damaged", file=sys.stderr)
            move(path, path.with_name(f"{path.name}.damaged"))

    # metrics

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        if self.writes:
            self._log.append(values)

    def metrics(self) -> list[dict[str, Any]]:
        """Return all lines of metrics.jsonl that can be read."""
        return self._log.lines()

    def truncate_log(self, step: int) -> None:
        """Drop the metrics of steps that will be computed again, so that a resumed log reads like that of one run."""
        if self.writes:
            self._log.truncate(step)

    # unreadable images

    def record_unreadable(self, reasons: dict[str, str]) -> None:
        """Add images, path to reason, to bad_files.csv."""
        if not self.writes or not reasons:
            return
        write_unreadable(self.path / "bad_files.csv", {**self.bad, **reasons})

    @property
    def bad(self) -> dict[str, str]:
        """Path and reason of every unreadable image recorded by any start of the run."""
        path = self.path / "bad_files.csv"
        if not path.is_file():
            return {}
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.DictReader(file) if row.get("path") and row.get("reason")]
        return {unguard_cell(row["path"]): unguard_cell(row["reason"]) for row in rows}

    # checkpoints

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; at every moment a complete one is on disk. The first one ends a replacement."""
        if self.writes:
            self._checkpoints.write(state, self._identity)
            replacement.discard(self.path)

    def restore(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint on the CPU, or None if there is none or the run is to start over."""
        checkpoint = None if self._fresh else self._checkpoints.read(self._identity)
        if checkpoint is None:
            return None
        if self.writes and checkpoint.damaged:
            problems = "; ".join(f"{name} is damaged ({error})" for name, error in checkpoint.damaged.items())
            step = checkpoint.state["step"]
            print(f"{printable(self.path)}: {problems}. Resuming from {checkpoint.name}, step {step}", file=sys.stderr)
        return checkpoint.state

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as complete, with hashes of the weights, and release the lock."""
        if not self.writes:
            return
        files = {name: file_hash(self.path / name) for name in WEIGHTS if (self.path / name).is_file()}
        write_atomically(self.path / "result.json", json.dumps({**result, "files": files}, indent=2) + "\n")
        replacement.discard(self.path)
        self.release(result)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None while it is unfinished, or if its weights are not those it wrote."""
        if self._fresh:
            return None
        result = self._read_json("result.json", dict)
        if result is None:
            return None
        files = result.pop("files", None)
        if files is None:  # version 0.1
            weights = self.path / "encoder.safetensors"
            return result if not weights.exists() or weights.stat().st_size > 8 else None
        damaged = [n for n, h in files.items() if not (self.path / n).is_file() or file_hash(self.path / n) != h]
        if damaged and self.writes:
            text = f"{', '.join(damaged)} damaged; written again from the checkpoint"
            print(f"{printable(self.path)}: {text}", file=sys.stderr)
        return None if damaged else result
