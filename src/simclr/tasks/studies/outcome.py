"""Results of a study: its members with their figures, as a table and as files next to their runs."""

import csv
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from simclr.report.pictures import study_figure
from simclr.report.words import is_fraction
from simclr.runs.files import write_together
from simclr.runs.recipe import flatten, plain
from simclr.tasks.pretrain import Pretrain

COLUMNS = ("member", "seed", "measure", "value", "low", "high", "n", "published", "run")
NOT_SHOWN = ("out", "fresh", "seed", "run", "teacher", "data", "machine")  # settings that do not distinguish members


@dataclass(frozen=True)
class Outcome:
    """Result of one member with one seed."""

    label: str
    seed: int
    chain: tuple[Any, ...]
    """its tasks, each of which starts from the run before it"""
    figures: dict[str, dict[str, Any]]
    """results by measure; none for a run that failed"""
    failed: str | None = None
    """error of a run that failed"""


def differences(base: Pretrain, *chain: Any) -> dict[str, Any]:
    """Return the settings of a pretraining that differ from the base, and those of the tasks that follow it that differ
    from their defaults."""
    changed: dict[str, Any] = {}
    for task in chain:
        first = isinstance(task, Pretrain)
        given = {f.name: getattr(task, f.name) for f in fields(task) if f.name in ("run", "teacher", "data")}
        before = dict(flatten(plain(base if first else type(task)(**given))))
        prefix = "" if first else f"{task.command}."
        changed |= {
            prefix + name: value
            for name, value in flatten(plain(task))
            if value != before.get(name) and name.split(".")[0] not in NOT_SHOWN
        }
    return changed


def summary(outcomes: list[Outcome], base: Pretrain, published: dict[str, float], folder: Path) -> dict[str, Any]:
    """Return for each label the settings, the figures of every run, their mean and standard deviation over seeds, and
    the published figure."""
    members: dict[str, Any] = {}
    for outcome in outcomes:
        entry = members.setdefault(
            outcome.label,
            {"settings": differences(base, *outcome.chain), "runs": {}, "mean": {}, "sd": {}, "failed": {},
             "published": published.get(outcome.label)},
        )  # fmt: skip
        values = {name: row["value"] for name, row in outcome.figures.items()}
        entry["runs"][str(outcome.seed)] = {"run": str(outcome.chain[-1].folder.relative_to(folder)), **values}
        if outcome.failed:
            entry["failed"][str(outcome.seed)] = outcome.failed
    for entry in members.values():
        names = dict.fromkeys(name for run in entry["runs"].values() for name in run if name != "run")
        for name in names:
            values = [run[name] for run in entry["runs"].values() if name in run]
            entry["mean"][name] = float(np.mean(values))
            if len(values) > 1:
                entry["sd"][name] = float(np.std(values, ddof=1))
    return members


def table(members: dict[str, Any], source: str) -> str:
    """Return a table of means ± standard deviations over seeds, %, with the published figures."""
    names = list(dict.fromkeys(name for entry in members.values() for name in entry["mean"]))
    has_published = any(entry["published"] is not None for entry in members.values())
    rows = [("", *names, *([f"published, {source}"] if has_published else []), "")]
    for label, entry in members.items():
        cells = [_mean_and_sd(entry, name) for name in names]
        cells += ["" if entry["published"] is None else f"{entry['published']:.1f}"] if has_published else []
        rows.append((label, *cells, f"seed {', '.join(entry['failed'])} failed" if entry["failed"] else ""))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _mean_and_sd(entry: dict[str, Any], name: str) -> str:
    if name not in entry["mean"]:
        return "-"
    factor = 100 if is_fraction(name) else 1
    spread = f" ± {factor * entry['sd'][name]:.1f}" if name in entry["sd"] else ""
    return f"{factor * entry['mean'][name]:.1f}{spread}"


def write(content: dict[str, Any], outcomes: list[Outcome], folder: Path) -> None:
    """Write study.json, study.csv and study.svg unless they are up to date; older files are numbered."""
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows([COLUMNS, *_rows(content, outcomes)])
    whole = json.dumps(content, indent=2) + "\n"
    write_together(folder, {"study.csv": lines.getvalue(), "study.svg": study_figure(content), "study.json": whole})
    print(f"wrote {folder / 'study.json'}, study.csv and study.svg")


def _rows(content: dict[str, Any], outcomes: list[Outcome]) -> list[tuple]:
    rows = []
    for outcome in outcomes:
        entry = content["members"][outcome.label]
        for name, row in outcome.figures.items():
            interval = row["interval"] or (None, None)
            run = entry["runs"][str(outcome.seed)]["run"]
            rows.append((outcome.label, outcome.seed, name, row["value"], *interval, row["n"], entry["published"], run))
    return rows
