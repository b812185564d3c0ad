"""Run folder: the settings, the progress and the result of a training task.

recipe.yaml        the task's settings, usable as --config
environment.json   versions, hardware and the command of each start
data.json          number of images the run learns from, and their fingerprint
metrics.jsonl      one JSON object per line
bad_files.csv      images that could not be read, if there are any
checkpoints/       last.pt and previous.pt: everything needed to resume; tensors and plain types only
encoder.safetensors, head.safetensors, card.json, result.json, report.html   written at the end
"""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from simclr.errors import RunError
from simclr.runs.environment import environment
from simclr.runs.files import require_folder_path, write_atomically, write_unreadable
from simclr.runs.recipe import default_settings, flatten, plain

OWN = ("recipe.yaml", "environment.json", "data.json", "metrics.jsonl", "checkpoints", "bad_files.csv", "result.json",
       "card.json", "encoder.safetensors", "head.safetensors", "supervised.safetensors", "pictures",
       "report.html")  # fmt: skip
WHERE = {
    f"machine.{name}" for name in ("accelerator", "devices", "nodes", "workers", "storage", "compile", "recompute")
}
REMEDY = "Repeat its settings to resume, choose another --out, or start over with --fresh"


class Run:
    """The folder of a training task. Of several processes only the one with `writes` changes it."""

    def __init__(self, path: Path, *, writes: bool = False) -> None:
        self.path, self.writes = Path(path), writes
        self._fresh = False
        self._settings: tuple[str, str] | None = None

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
        `begin` writes the settings.

        Once it has a checkpoint or a result, the settings saved there must equal those of `task`, except for those that
        say where it runs rather than what it computes, and so must `data`, the description of the images it learns
        from. Where the images are the same, their path may differ. `fresh` deletes what an earlier run left in the
        folder, and nothing else.
        """
        run = cls(path, writes=writes)
        run._fresh = fresh
        if writes:
            run._check(task, data or {}, fresh)
        return run

    def _check(self, task: Any, data: dict[str, Any], fresh: bool) -> None:
        require_folder_path(self.path)
        recipe = {name: value for name, value in plain(task).items() if name not in ("out", "fresh")}
        if not isinstance(getattr(task, "data", ""), str | Path):  # an object in memory has no path
            recipe["data"] = type(task.data).__name__
        if self.path.is_dir() and any(self.path.iterdir()):
            if not (self.path / "recipe.yaml").is_file():
                raise RunError(self.path, "holds other files and no run", "Choose an empty or new folder for --out")
            if not fresh and self._has_progress:
                self._check_agreement(recipe, default_settings(task), data)
        header = f"# simclr {task.command}: the settings of this run, usable as --config\n"
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        self._settings = header + text, json.dumps(data) + "\n"

    def begin(self) -> None:
        """Delete what `fresh` deletes, and write the settings and the environment."""
        fresh, self._fresh = self._fresh, False
        if self._settings is None:
            return
        (recipe, data), self._settings = self._settings, None
        self.path.mkdir(parents=True, exist_ok=True)
        if fresh:
            self._clear()
        write_atomically(self.path / "recipe.yaml", recipe)
        write_atomically(self.path / "data.json", data)
        self._add_environment()

    @property
    def _has_progress(self) -> bool:
        """Whether there is something to resume: a command that was refused leaves at most a recipe."""
        names = ("checkpoints/last.pt", "checkpoints/previous.pt", "result.json")
        return any((self.path / name).exists() for name in names)

    def _clear(self) -> None:
        for name in OWN:
            target = self.path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        if kept := sorted(path.name for path in self.path.iterdir()):
            print(f"kept in {self.path}, from before: {', '.join(kept)}")

    def _check_agreement(self, recipe: dict, defaults: dict, data: dict) -> None:
        saved = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        before, now = dict(flatten(saved)), dict(flatten(recipe))
        # a setting that was added after the run began had its default then
        before |= {name: value for name, value in flatten(defaults) if name in now and name not in before}
        seen = self._saved_data
        same_images = seen is not None and seen.get("fingerprint") == data.get("fingerprint") is not None
        ignored = WHERE | ({"data"} if same_images else set())
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name) and name not in ignored]
        if changed:
            texts = [f"{name} was {before.get(name)!r} and is now {now.get(name)!r}" for name in changed]
            raise RunError(self.path, f"holds a run with other settings: {'; '.join(texts)}", REMEDY, tuple(changed))
        if changed := [name for name, value in (seen or {}).items() if data.get(name) != value]:
            counts = f"{seen.get('images')} when the run began, {data.get('images')} now"
            raise RunError(self.path, f"the images or their labels have changed ({counts})", REMEDY, tuple(changed))

    @property
    def _saved_data(self) -> dict[str, Any] | None:
        path = self.path / "data.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _add_environment(self) -> None:
        path = self.path / "environment.json"
        starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        starts.append(environment())
        write_atomically(path, json.dumps(starts, indent=2) + "\n")

    # metrics

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        if not self.writes:
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return all lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError:  # a full disk or a crash leaves half a line, at the end
            return [json.loads(line) for line in lines[:-1]]

    def truncate_log(self, step: int) -> None:
        """Drop the metrics of steps that will be computed again, so that a resumed log reads like that of one run."""
        if not self.writes:
            return
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    # unreadable images

    def record_unreadable(self, reasons: dict[str, str]) -> None:
        """Add images, path to reason, to bad_files.csv."""
        if not self.writes or not reasons:
            return
        partial = self.path / "bad_files.csv.partial"
        write_unreadable(partial, {**self.bad, **reasons})
        os.replace(partial, self.path / "bad_files.csv")

    @property
    def bad(self) -> dict[str, str]:
        """Path and reason of every unreadable image recorded by any start of the run."""
        path = self.path / "bad_files.csv"
        if not path.is_file():
            return {}
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row["path"]: row["reason"] for row in csv.DictReader(file)}

    # checkpoints

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; at every moment a complete one is on disk."""
        if not self.writes:
            return
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        partial, last = folder / "partial.pt", folder / "last.pt"
        try:
            with open(partial, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # on a full disk torch's writer names a line of its own source
            partial.unlink(missing_ok=True)
            free = shutil.disk_usage(folder).free / 1e6
            raise OSError(f"{partial} cannot be written ({free:,.1f} MB free). Older checkpoints are kept") from error
        if last.exists():
            os.replace(last, folder / "previous.pt")
        os.replace(partial, last)

    def restore(self) -> dict[str, Any] | None:
        """Return the newest readable checkpoint on the CPU, or None if there is none."""
        damaged: dict[str, str] = {}
        for name in ("last.pt", "previous.pt"):
            path = self.path / "checkpoints" / name
            if not path.exists():
                continue
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch reads pickles: half a file can raise nearly anything
                damaged[name] = type(error).__name__
        if damaged:
            problem = f"no checkpoint can be read ({', '.join(f'{name}: {error}' for name, error in damaged.items())})"
            raise RunError(self.path / "checkpoints", problem, "Start over with --fresh", tuple(damaged))
        return None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as complete."""
        if not self.writes:
            return
        write_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None while it is unfinished."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not self._fresh else None
