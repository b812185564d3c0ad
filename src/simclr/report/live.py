"""Live pages: runs while they are written, from their files alone. Nothing is written."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from simclr.report import comparison
from simclr.report.answer import head
from simclr.report.curves import COLOURS, compared, panels
from simclr.report.page import figure_of, table_of
from simclr.report.pictures import LARGE_TILE
from simclr.report.reading import read_run, runs_below
from simclr.report.record import RunRecord, is_number
from simclr.report.templates import render_template
from simclr.report.words import duration, number, setting_text, term
from simclr.runs.lock import has_ended, read_holder

TAIL = 8  # lines of the log that are shown
FIRST_LINE, SILENCE = 600.0, 60.0  # seconds without a line: before the second line of a start, and the minimum later
WRITTEN = ("metrics.jsonl", "environment.json", "checkpoints")  # what a running process changes
SHOWN = ("loss", "knn_top1", "train_top1", "images_per_s")  # figures of the table of runs
STATES = {
    "running": "running",
    "stale": "stale: its process writes nothing",
    "ended": "ended without a result: the same command resumes it",
    "stopped": "stopped: the same command resumes it",
    "finished": "finished",
    "weights": "weights without a log",
}


class Watched(NamedTuple):
    """A run with its state, a key of `STATES`, and the seconds since its process last wrote."""

    name: str
    record: RunRecord
    state: str
    silence: float


def state_of(record: RunRecord, silence: float) -> str:
    """Return the state of a run from its result, its lock and the seconds since it last wrote."""
    if record.finished:
        return "finished" if record.trained else "weights"
    holder = read_holder(record.path)
    if not holder:
        return "stopped"
    if has_ended(holder):
        return "ended"
    return "stale" if silence > patience(record) else "running"


def patience(record: RunRecord) -> float:
    """Return the seconds without a line of the log after which a run is stale: ten of its usual intervals, at least a
    minute, or ten minutes before its second line."""
    lines = record.segments[-1] if record.segments and len(record.segments) >= len(record.starts) else []
    times = [line["seconds"] for line in lines if "seconds" in line]
    if len(times) < 2:
        return FIRST_LINE
    return max(SILENCE, 10 * median(b - a for a, b in zip(times, times[1:], strict=False)))


class LivePages:
    """Pages of the runs in some folders, of which those that changed are read again for each page."""

    def __init__(self, folders: Sequence[Path], every: float | int) -> None:
        self.folders, self.every = folders, every
        self._read: dict[Path, tuple[Any, RunRecord]] = {}

    def runs(self) -> list[Watched]:
        """Return the runs, those that wrote last first."""
        paths = [run for folder in self.folders for path in runs_below(folder) for run in (path, *_trained_on(path))]
        records, silences = zip(*map(self._record, dict.fromkeys(paths)), strict=True) if paths else ((), ())
        named = zip(comparison.names(records), records, silences, strict=True)
        runs = [Watched(name, record, state_of(record, silence), silence) for name, record, silence in named]
        return sorted(runs, key=lambda run: run.silence)

    def page(self, path: str, nonce: str) -> str | None:
        """Return the page at a path of the server as HTML: / of all runs, /run/NAME of one; None for any other path.
        `nonce` marks the script of the page."""
        runs = self.runs()
        by_path = {f"/run/{run.name}": run for run in runs}
        if path == "/":
            shown = self._overview(runs)
        elif (run := by_path.get(unquote(path))) is not None:
            shown = self._run(run)
        else:
            return None
        return render_template(
            "live.html.j2", page=shown, every=self.every, nonce=nonce, colours=COLOURS, side=LARGE_TILE
        )

    def _record(self, path: Path) -> tuple[RunRecord, float]:
        """Return a run and the seconds since it was last written."""
        files = {}
        for file in path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # replaced at this moment
                files[file.name] = file.stat().st_mtime, file.stat().st_size
        if self._read.get(path, (None,))[0] != files:
            self._read[path] = files, read_run(path)
        written = max((files[name][0] for name in WRITTEN if name in files), default=path.stat().st_mtime)
        return self._read[path][1], max(time.time() - written, 0.0)

    def _overview(self, runs: Sequence[Watched]) -> dict[str, Any]:
        shown = [name for name in SHOWN if any(run.record.last(name) is not None for run in runs)]
        columns = ["run", "task", "state", "last write", "step", "time left", *(term(name).label for name in shown)]
        rows = [
            {"href": f"/run/{quote(run.name, safe='')}", "name": run.name, "state": run.state, "cells": [
                run.record.kind, STATES[run.state], f"{duration(run.silence)} ago", _progress(run.record),
                _left(run.record) if run.state == "running" else "",
                *(number(run.record.last(name), term(name).unit) for name in shown)]}
            for run in runs
        ]  # fmt: skip
        logged = [run for run in runs if run.record.lines][:COLOURS]
        records, names = [run.record for run in logged], [run.name for run in logged]
        tables = []
        if len(logged) > 1 and (differing := comparison.differing(records)):
            tables.append(table_of("Settings that differ", ["setting", *names], differing))
        curves = [figure_of(panel) for panel in compared(records, names)] if len(logged) > 1 else []
        counts = {state: sum(run.state == state for run in runs) for state in STATES}
        answer = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no run yet"
        more = f"Curves and settings are of the {COLOURS} runs that wrote last." if len(logged) < len(runs) else ""
        return {"title": "Runs", "answer": answer, "columns": columns, "rows": rows, "tables": tables, "note": more,
                "curves": curves}  # fmt: skip

    def _run(self, run: Watched) -> dict[str, Any]:
        record = run.record
        lines = record.lines[-TAIL:]
        columns = list(dict.fromkeys(name for line in lines for name in line))
        tail = [[_cell(name, line[name]) if name in line else "" for name in columns] for line in lines]
        settings = [[name, setting_text(value)] for name, value in record.settings.items()]
        left = f", {_left(record)} left" if run.state == "running" and _left(record) else ""
        answer = f"{STATES[run.state]}; step {_progress(record)}{left}; last write {duration(run.silence)} ago"
        tables = [table_of("Last lines of the log", [term(name).label for name in columns], tail)] if lines else []
        return {"title": run.name, "answer": answer, "note": head(record), "tables": tables, "rows": [],
                "curves": [figure_of(panel) for panel in panels(record)], "up": True,
                "folded": table_of("Settings", ["setting", "value"], settings)}  # fmt: skip


def _cell(name: str, value: Any) -> str:
    """Return a value of the log as text."""
    if name == "seconds":
        return duration(value)
    return number(value, "%" if term(name).unit == "%" else "") if is_number(value) else setting_text(value)


def _trained_on(run: Path) -> list[Path]:
    """Return the runs in a run folder, such as fine-tunings of its encoder."""
    below = sorted(path for path in run.iterdir() if not path.name.startswith("."))
    return [path for path in below if (path / "recipe.yaml").is_file()]


def _progress(record: RunRecord) -> str:
    return f"{record.step:,}" + (f" of {record.steps:,}" if record.steps else "")


def _left(record: RunRecord) -> str:
    """Return the time to the last step at the speed of this start, as text; empty if it is not known."""
    timed = [line for line in record.segments[-1] if "seconds" in line] if record.segments else []
    if record.steps is None or len(timed) < 2 or timed[-1]["step"] == timed[0]["step"]:
        return ""
    rate = (timed[-1]["seconds"] - timed[0]["seconds"]) / (timed[-1]["step"] - timed[0]["step"])
    return duration(rate * (record.steps - record.step))
