"""Reading run folders: none of their files is needed, and of a torn log the whole lines are taken."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml

from simclr.cli.commands import COMMANDS
from simclr.report.record import Folder, Measurement, is_number
from simclr.runs.files import PICTURES

SIGNS = ("recipe.yaml", "card.json", "metrics.jsonl", "result.json")  # any of them makes a folder a run
NO_MEASUREMENTS = ("card.json", "data.json", "environment.json", "report.json")


def find_runs(paths: list[Path]) -> list[Path]:
    """The run folders that are meant: each path, its folder if it is a file of weights, or the runs inside it.

    ValueError for a path that holds none.
    """
    found: list[Path] = []
    for path in paths:
        path = path.parent if path.suffix == ".safetensors" else path
        if not path.is_dir():
            raise ValueError(f"run: there is no folder {path}")
        inside = _runs_in(path, 2)  # a study has LABEL/seed-K
        if not inside:
            raise ValueError(f"run: {path} is no run folder and holds none; runs have a {' or a '.join(SIGNS[:3])}")
        found += [p for p in inside if p not in found]
    return found


def _runs_in(path: Path, depth: int) -> list[Path]:
    """The folder if it is a run, which has its own fine-tunings on its page, else the runs up to `depth` below it."""
    if is_run(path):
        return [path]
    below = sorted(p for p in path.iterdir() if p.is_dir()) if depth else []
    return [run for p in below for run in _runs_in(p, depth - 1)]


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
        rows = [row for row in rows if isinstance(row, dict) and is_number(row.get("value")) and "metric" in row]
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
    return sorted(found, key=lambda m: (m.older, Path(m.file).stem != m.task))


def _bad(path: Path) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(_text(path, []), newline=""))
    return [(row.get("path") or "", row.get("reason") or "") for row in rows]
