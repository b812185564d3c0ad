"""Report page: run records as one HTML file that needs no other file, or as JSON."""

import base64
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr.errors import SettingError
from simclr.report import comparison
from simclr.report.answer import answer, bars, head, verdict
from simclr.report.checks import Finding
from simclr.report.curves import COLOURS, Panel, bar, checked_on, colour, compared, draw, explained, panels
from simclr.report.few_labels import few_labels
from simclr.report.images import VIEWS, images_of, views_of
from simclr.report.pictures import LARGE_TILE
from simclr.report.record import Measurement, RunRecord, task_of
from simclr.report.templates import render_template
from simclr.report.warnings import comparison_warnings, run_warnings
from simclr.report.words import detail_text, interval, number, setting_text, term, unit_label
from simclr.runs.files import write_atomically
from simclr.runs.recipe import flatten
from simclr.settings import field_docs

GENERATOR = "simclr report"
MARKS = (f'<meta name="generator" content="{GENERATOR}">'.encode(), f'"generator": "{GENERATOR}"'.encode())
LISTED_IMAGES = 50  # unreadable images that are listed
PICTURE_BYTES = 8 << 20  # largest picture that is included in the page
COLUMNS = ("name", "protocol", "metric", "value", "interval", "n", "layer", "detail", "hits", "answers", "role", "unit",
           "target", "constant")  # fmt: skip
LABELS = {  # of the other fields of a result
    "interval_of": "interval", "transform": "images", "evaluated_on": "evaluated on",
    "seen_in_pretraining": "seen in pretraining", "code": "version of the code", "recipe": "hash of the recipe",
    "weights": "hash of the weights",
}  # fmt: skip
ALTS = {  # of pictures that commands draw
    "views": VIEWS,
    "neighbours": "Test images, one in each row, with the images nearest to them in feature space",
    "health": "Images, one in each row, with the images nearest to them in feature space",
    "v2": "Accuracy of each stage against the number of parameters of its encoder",
}
MIME = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".svg": "svg+xml"}


def write_page(
    records: Sequence[RunRecord], path: Path, chapter: dict[str, Any] | None = None, views: bool = False
) -> dict[str, Any]:
    """Write the page of runs, or its content as JSON if `path` ends in .json, and return the content. The page begins
    with `chapter`: its `title`, `tables` with columns and rows, and a `picture`, a path. With `views`, views of the
    training images are drawn for the runs that have no picture of them."""
    shown = contents(records, views)
    if chapter is not None:
        shown |= {"title": chapter["title"], "chapter": {**chapter, "picture": _picture(chapter["picture"])}}
    text = json.dumps(_without_pictures(shown), indent=2) + "\n" if path.suffix == ".json" else render(shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode(errors="backslashreplace").decode())
    return _without_pictures(shown)


def require_report_path(path: Path, overwrite: bool = False, remedy: str = "Choose another --out") -> Path:
    """Return `path` if no file is there, or a report, which may always be replaced; raise SettingError with `remedy`
    otherwise."""
    if path.is_file() and not overwrite:
        with open(path, "rb") as file:
            beginning = file.read(400)
        if not any(mark in beginning for mark in MARKS):
            raise SettingError("out", "the path of a new file or of a report", str(path), remedy)
    return path


def render(shown: dict[str, Any]) -> str:
    """Return the page as HTML. Every text is escaped; curves are SVG that this package drew."""
    data = _without_pictures(shown)
    return render_template("page.html.j2", page=shown, data=data, colours=COLOURS, side=LARGE_TILE)


def contents(records: Sequence[RunRecord], views: bool = False) -> dict[str, Any]:
    """Return everything that a page shows, as plain values."""
    names = comparison.names(records)
    runs = [_run(record, name, f"map{k}", views) for k, (record, name) in enumerate(zip(records, names, strict=True))]
    title, made = runs[0]["name"] if len(runs) == 1 else f"{len(runs)} runs", time.strftime("%Y-%m-%d %H:%M")
    return {"generator": GENERATOR, "made": made, "title": title, "comparison": _comparison(records), "runs": runs}


def _comparison(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    if len(records) < 2:
        return None
    columns, rows = comparison.overview(records)
    tables = [table_of("Side by side", columns, rows)]
    if rows := comparison.differing(records):
        tables.append(table_of("Settings that differ", ["setting", *columns[1:]], rows))
    if rows := comparison.differences(records):
        tables.append(table_of("Differences", comparison.DIFFERENCES, rows, comparison.DIFFERENCES_NOTE))
    if rows := comparison.over_seeds(records):
        seeds = ["figure", "runs", "mean", "standard deviation", "95 % interval of the mean"]
        note = "Runs that differ only in their seed, with Student's interval of their mean."
        tables.append(table_of("Over seeds", seeds, rows, note))
    curves = [figure_of(panel) for panel in compared(records, columns[1:])]
    return {**_warnings(comparison_warnings(records)), "curves": curves, "tables": tables}


def _run(record: RunRecord, name: str, group: str, views: bool) -> dict[str, Any]:
    images = images_of(record, group)
    pictures = [_picture(path) for path in record.pictures if path.stat().st_size <= PICTURE_BYTES]
    drawn = next((picture for picture in pictures if picture["alt"] == VIEWS), None)
    return {
        "name": name,
        "path": str(record.path),
        "finished": record.finished,
        "head": head(record),
        "verdict": verdict(record),
        "answer": answer(record),
        "bars": bars(record, images and images["classes"]),
        **_warnings(run_warnings(record)),
        "images": images,
        "views": drawn or (views_of(record) if views else None),
        "few_labels": few_labels(record),
        "curves": [figure_of(panel) for panel in panels(record)],
        "measurements": [_measured(m) for m in record.measurements],
        "facts": _facts(record),
        "pictures": [picture for picture in pictures if picture is not drawn],
    }


def _warnings(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return findings as sentences, and as values for programs."""
    return {"warnings": [f.text for f in findings], "findings": [f._asdict() for f in findings]}


# parts of a page


def table_of(title: str, columns: list[str], rows: list[list[str]], note: str = "", **more: Any) -> dict[str, Any]:
    """Return a table as the templates take it."""
    return {"title": title, "columns": columns, "rows": rows, "note": note, **more}


def figure_of(panel: Panel) -> dict[str, Any]:
    """Return the curves of a panel as the templates take them."""
    keys = [[line.label, colour(k)] for k, line in enumerate(panel.lines)] if len(panel.lines) > 1 else []
    keys += [[panel.level[1], "level"]] if panel.level else []
    keys += [["resumed here", "seam"]] if panel.seams else []
    return {"title": panel.title, "unit": panel.unit, "legend": keys, "caption": panel.caption, "main": panel.main,
            "svg": draw(panel)}  # fmt: skip


def _measured(m: Measurement) -> dict[str, Any]:
    """Return a result file as a table; fields that all rows share are listed once below it."""
    shared, separate = {}, []

    def text(row: dict[str, Any], name: str) -> str:
        return "unknown" if row.get(name) is None else setting_text(row[name])

    for name in dict.fromkeys(name for row in m.rows for name in row if name not in COLUMNS):
        values = [text(row, name) for row in m.rows]
        if len(set(values)) == 1:
            shared[LABELS.get(name, name)] = values[0]
        else:
            separate.append(name)
    detail = any(row.get("detail") for row in m.rows)
    columns = ["model", "protocol", "layer", "figure", "value", "95 % interval", "n"]
    columns += [*(LABELS.get(name, name) for name in separate), *(["detail"] * detail)]
    units = [unit_label(row["unit"]) for row in m.rows]
    rows = [
        [str(row.get("name", "")), str(row.get("protocol", "")), str(row.get("layer", "")), term(row["metric"]).label,
         number(row["value"], unit), interval(row.get("interval"), unit), f"{row.get('n', 0):,}",
         *(text(row, name) for name in separate), *([detail_text(row.get("detail") or {})] * detail)]
        for row, unit in zip(m.rows, units, strict=True)
    ]  # fmt: skip
    bars = [
        bar(row["value"], row.get("interval")) if unit == "%" else "" for row, unit in zip(m.rows, units, strict=True)
    ]
    shared |= {"command": m.environment.get("command", ""), "at": m.environment.get("time", "")}
    title = f"{m.command} on {m.data}" if m.data else m.command
    return table_of(
        title, columns, rows, explained([row["metric"] for row in m.rows]),
        file=m.file, older=m.older, shared=[[k, v] for k, v in shared.items() if v], svg=bars,
    )  # fmt: skip


def _facts(record: RunRecord) -> list[dict[str, Any]]:
    """Return tables of settings, environment, data and unreadable images."""
    tables = []
    if record.recipe:
        meanings = _meanings(task_of(record.kind))
        rows = [
            [name, setting_text(value), setting_text(record.defaults[name]) if name in record.defaults else "–",
             meanings.get(name, "")] for name, value in flatten(record.recipe)
        ]  # fmt: skip
        changed = [row for row in rows if row[1] != row[2]]
        columns = ["setting", "value", "default", "meaning"]
        if record.defaults:
            tables.append(table_of("Settings other than the defaults", columns, changed))
        tables.append(table_of("All settings", columns, rows, folded=True))
    if record.starts:
        columns = list(dict.fromkeys(name for start in record.starts for name in start))
        rows = [[name, *(setting_text(start.get(name)) for start in record.starts)] for name in columns]
        names = ["start", *(str(k + 1) for k in range(len(record.starts)))]
        tables.append(table_of("Environment of each start", names, rows))
    source = {**record.data, **{f"card: {k}": v for k, v in (record.card.get("source") or {}).items()}}
    if record.kind == "pretrain":
        source["checks during pretraining"] = f"on {checked_on(record)}"
    if record.weights:
        source["hash of the weights"] = record.weights
    if source:
        tables.append(table_of("Data and weights", ["", ""], [[k, setting_text(v)] for k, v in source.items()]))
    if record.bad:
        note = "" if len(record.bad) <= LISTED_IMAGES else f"The first {LISTED_IMAGES} of {len(record.bad):,}."
        rows = [list(row) for row in record.bad[:LISTED_IMAGES]]
        tables.append(table_of("Images that could not be read", ["path", "reason"], rows, note))
    return tables


def _meanings(task: type | None, prefix: str = "") -> dict[str, str]:
    """Return the meaning of each setting of a task, those of its nested settings included."""
    if task is None:
        return {}
    docs = {prefix + name: text for name, text in field_docs(task).items()}
    for field in dataclasses.fields(task):
        if dataclasses.is_dataclass(field.type):
            docs |= _meanings(field.type, f"{prefix}{field.name}.")
    return docs


def _picture(path: Path) -> dict[str, str]:
    coded = base64.b64encode(path.read_bytes()).decode()
    alt = ALTS.get(path.stem, path.stem.replace("_", " "))
    return {"name": path.name, "alt": alt, "src": f"data:image/{MIME[path.suffix.lower()]};base64,{coded}"}


def _without_pictures(shown: Any) -> Any:
    """Return the content of a page without drawings and pictures."""
    if isinstance(shown, dict):
        return {k: _without_pictures(v) for k, v in shown.items() if k not in ("svg", "src")}
    return [_without_pictures(v) for v in shown] if isinstance(shown, list) else shown
