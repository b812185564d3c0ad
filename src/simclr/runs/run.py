"""The run folder: what a task was asked to do, how far it came, and what came of it.

recipe.yaml        the task's fields, enough to start it again
environment.json   versions, hardware and the command of each start
data.json          how many images the run learns from, and their fingerprint
metrics.jsonl      one JSON object a line
bad_files.csv      images that could not be read, if there are any
checkpoints/       last.pt and previous.pt: everything needed to go on; tensors and plain types only
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

from simclr.runs.environment import environment
from simclr.runs.files import writable_folder, write_atomically
from simclr.runs.recipe import default_settings, flatten, plain

OWN = ("recipe.yaml", "environment.json", "data.json", "metrics.jsonl", "checkpoints", "bad_files.csv", "result.json",
       "card.json", "encoder.safetensors", "head.safetensors", "supervised.safetensors", "pictures",
       "report.html")  # fmt: skip
WHERE = {
    f"machine.{name}" for name in ("accelerator", "devices", "nodes", "workers", "storage", "compile", "recompute")
}


class Run:
    """A folder that a task fills. Of several processes only the one with `writes` changes anything in it."""

    def __init__(self, path: Path, *, writes: bool = False) -> None:
        self.path, self.writes = Path(path), writes

    @classmethod
    def start(
        cls, path: Path, task: Any, *, data: dict[str, Any] | None = None, fresh: bool = False, writes: bool = True
    ) -> "Run":
        """Begin a run of `task` in `path`, or go on with the one that is there.

        Once it has a checkpoint or a result, settings saved there must equal those of `task`, but for those that say
        where it runs rather than what it computes, and so must `data`, what the run learns from. `fresh` deletes what
        an earlier run left in the folder, and nothing else.
        """
        run = cls(path, writes=writes)
        if writes:
            run._open(task, data or {}, fresh)
        return run

    def _open(self, task: Any, data: dict[str, Any], fresh: bool) -> None:
        writable_folder(self.path)
        recipe = {name: value for name, value in plain(task).items() if name not in ("out", "fresh")}
        if not isinstance(getattr(task, "data", ""), str | Path):  # an object in memory has no words of its own
            recipe["data"] = type(task.data).__name__
        if self.path.is_dir() and any(self.path.iterdir()):
            if not (self.path / "recipe.yaml").is_file():
                raise ValueError(f"out: {self.path} holds other files and no run; name an empty or new folder")
            if fresh:
                self._clear()
            elif self._begun:
                self._must_agree(recipe, default_settings(task), data)
        self.path.mkdir(parents=True, exist_ok=True)
        header = f"# simclr {type(task).__name__.lower()}: the settings of this run, usable as --config\n"
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "recipe.yaml", header + text)
        write_atomically(self.path / "data.json", json.dumps(data) + "\n")
        self._note_environment()

    @property
    def _begun(self) -> bool:
        """Whether there is something to go on with: a command that was refused leaves a recipe alone."""
        kept = ("checkpoints/last.pt", "checkpoints/previous.pt", "result.json")
        return any((self.path / name).exists() for name in kept)

    def _clear(self) -> None:
        for name in OWN:
            target = self.path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        if kept := sorted(path.name for path in self.path.iterdir()):
            print(f"kept in {self.path}, from before: {', '.join(kept)}")

    def _must_agree(self, recipe: dict, unsaid: dict, data: dict) -> None:
        saved = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        before, now = dict(flatten(saved)), dict(flatten(recipe))
        # a setting that came after the run began had its default then
        before |= {name: value for name, value in flatten(unsaid) if name in now and name not in before}
        changed = [
            f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
            for name in {**before, **now}
            if before.get(name) != now.get(name) and name not in WHERE
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other settings: {'; '.join(changed)}. "
                "Repeat its settings to go on, choose another --out, or start over with --fresh"
            )
        seen = self.path / "data.json"
        if seen.is_file() and (then := json.loads(seen.read_text(encoding="utf-8"))) != data:
            raise ValueError(
                f"the images have changed since the run in {self.path} began: {then.get('images')} then, "
                f"{data.get('images')} now. Put them back to go on, choose another --out, or start over with --fresh"
            )

    def _note_environment(self) -> None:
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
        """All lines written so far."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError:  # a full disk or a crash leaves half a line, at the end
            return [json.loads(line) for line in lines[:-1]]

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that will be computed again, so that a resumed log reads like one run's."""
        if not self.writes:
            return
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    # unreadable images

    def note_bad(self, bad: dict[str, str]) -> None:
        """Add images, path to reason, to bad_files.csv."""
        if not self.writes or not bad:
            return
        from simclr.runs.files import write_bad_files  # with it come the compilers of the views

        partial = self.path / "bad_files.csv.partial"
        write_bad_files(partial, {**self.bad, **bad})
        os.replace(partial, self.path / "bad_files.csv")

    @property
    def bad(self) -> dict[str, str]:
        """Path and reason of every image noted so far, whichever start of the run found it."""
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
        except (OSError, RuntimeError) as error:  # on a full disk torch's writer tells of its own lines
            partial.unlink(missing_ok=True)
            free = shutil.disk_usage(folder).free / 1e6
            raise OSError(f"{partial} cannot be written; {free:,.0f} MB are free there. Older ones are kept") from error
        if last.exists():
            os.replace(last, folder / "previous.pt")
        os.replace(partial, last)

    def restore(self) -> dict[str, Any] | None:
        """The newest readable checkpoint on the CPU, or None where there is none."""
        broken = []
        for name in ("last.pt", "previous.pt"):
            path = self.path / "checkpoints" / name
            if not path.exists():
                continue
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch reads pickles: half a file can raise nearly anything
                broken.append(f"{path} is damaged: {type(error).__name__}")
        if broken:
            raise ValueError(f"no checkpoint can be read ({'; '.join(broken)}); --fresh starts over")
        return None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as complete."""
        if not self.writes:
            return
        write_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run found, or None while it is unfinished."""
        path = self.path / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
