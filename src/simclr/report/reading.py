"""Reader of run folders: every file is optional, and complete lines of a damaged log are kept."""

import csv
import io
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from simclr.cli.commands import COMMANDS
from simclr.errors import DataError, RunError
from simclr.report.record import Measurement, RunRecord, is_number
from simclr.runs.files import PICTURES, unguard_cell
from simclr.runs.reading import read_bytes, read_yaml
from simclr.runs.results import completed, run_folder

MAX_FILE_BYTES = 1 << 30  # of a log; a million lines have 0.3 GB
SIGNS = ("recipe.yaml", "card.json", "metrics.jsonl", "result.json")  # each of them marks a run folder
PICTURE_SUFFIXES = (*PICTURES, ".svg")
NO_MEASUREMENTS = ("card.json", "data.json", "environment.json", "report.json")


def find_runs(paths: list[Path]) -> list[Path]:
    """Return the run folders of paths: each folder itself, the folder of a weights file, or the runs in a folder."""
    runs: list[Path] = []
    for path in map(run_folder, paths):
        if not path.is_dir():
            raise RunError(path, "does not exist", "Name a run folder or a folder of runs")
        inside = runs_below(path)
        if not inside:
            raise RunError(path, f"contains no run; a run folder has a {' or a '.join(SIGNS[:3])}")
        runs += [run for run in inside if run not in runs]
    return runs


def runs_below(path: Path, depth: int = 2) -> list[Path]:
    """Return the folder if it is a run, whose page shows its own fine-tunings, else the runs up to `depth` below it: a
    study has LABEL/seed-K."""
    if is_run(path):
        return [path]
    below = sorted(p for p in path.iterdir() if p.is_dir()) if depth else []
    return [run for p in below for run in runs_below(p, depth - 1)]


def is_run(path: Path) -> bool:
    """Return whether a folder is a run or holds result files of one."""
    return any((path / name).is_file() for name in SIGNS) or bool(_measurements(path, [], below=False))


def read_run(path: Path) -> RunRecord:
    """Return the content of a run folder, without the pixels of its pictures."""
    unreadable: list[str] = []
    text = _text(path / "recipe.yaml", unreadable)
    try:
        recipe = read_yaml(path / "recipe.yaml") if (path / "recipe.yaml").is_file() else None
    except (DataError, OSError):
        recipe = None
        unreadable.append("recipe.yaml")
    recipe = recipe if isinstance(recipe, dict) else {}
    result = _json(path / "result.json", dict, unreadable)
    card = _json(path / "card.json", dict, unreadable) or {}
    lines, truncated = _lines(path / "metrics.jsonl")
    if result and isinstance(result.get("step"), int):  # only the result holds the last check
        at = bisect_right([line["step"] for line in lines], result["step"])  # lines follow if the run is extended
        lines.insert(at, {k: v for k, v in result.items() if k in ("step", "knn_top1") or k.startswith("health_")})
    return RunRecord(
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
                  if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()],
        truncated=truncated,
        unreadable=unreadable,
    )  # fmt: skip


def _kind(text: str, recipe: dict, result: dict | None, card: dict) -> str:
    """Return the command that wrote a run: the first line of the recipe names it, as do the result and the card;
    without them it is inferred from the settings."""
    if text.startswith("# simclr ") and (word := text.split(maxsplit=3)[2].rstrip(":")) in COMMANDS:
        return word
    contents = (result or {}), (card.get("source") or {})
    command = next((c[key] for c in contents for key in ("command", "task") if c.get(key)), None)
    return command or ("pretrain" if "views" in recipe and "batch" in recipe else "encoder")


def _text(path: Path, unreadable: list[str]) -> str:
    try:
        return read_bytes(path, MAX_FILE_BYTES).decode(errors="replace") if path.is_file() else ""
    except (DataError, OSError):
        unreadable.append(path.name)
        return ""


def _json(path: Path, kind: type, unreadable: list[str]) -> Any:
    text = _text(path, unreadable)
    if not text:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, kind):
        unreadable.append(path.name)
        return None
    return content


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the complete lines of a log and the number of the others."""
    lines, truncated = [], 0
    for text in _text(path, []).splitlines():
        try:
            line = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            line = {}
        if line is None:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        else:
            truncated += 1
    return lines, truncated


def _measurements(path: Path, unreadable: list[str], below: bool = True) -> list[Measurement]:
    """Return the result files of a folder and of those directly below it, such as a fine-tuning; older ones last."""
    measurements = []
    for file in sorted([*path.glob("*.json"), *(path.glob("*/*.json") if below else ())]):
        if file.name in NO_MEASUREMENTS:
            continue
        content = _json(file, dict, unreadable if file.parent == path else [])
        if not isinstance((content or {}).get("results"), list):
            continue
        stem = file.with_suffix("")
        content = completed(content, stem.name)
        rows = [row for row in content["results"] if isinstance(row, dict) and is_number(row.get("value"))]
        if rows := [row for row in rows if "metric" in row]:
            measurements.append(
                Measurement(
                    file=file.relative_to(path).as_posix(),
                    command=content["command"],
                    settings=content.get("settings") or {},
                    rows=rows,
                    environment=content.get("environment") or {},
                    older=stem.suffix[1:].isdigit() and stem.with_suffix(".json").exists(),
                )
            )
    return sorted(measurements, key=lambda m: (m.older, Path(m.file).stem != m.command))


def _bad(path: Path) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(_text(path, []), newline=""))
    return [(unguard_cell(row.get("path") or ""), row.get("reason") or "") for row in rows]
