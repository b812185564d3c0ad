"""Run folders -> one HTML page that needs nothing else: texts and tables first, then the same as a file."""

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from simclr.evaluation.metrics import METRICS
from simclr.report import comparison as comparing
from simclr.report.curves import COLOURS, Panel, bar, checked_on, colour, compared, draw, explained, panels
from simclr.report.record import Folder, Measurement, task_of
from simclr.report.warnings import BASELINES, concerns, concerns_together
from simclr.report.words import duration, interval, number, setting, several, term
from simclr.runs.files import write_atomically
from simclr.runs.recipe import flatten

MAKER = "simclr report"
MARKS = (f'<meta name="generator" content="{MAKER}">'.encode(), f'"generator": "{MAKER}"'.encode())
MOST_BAD = 50  # unreadable images that are listed
MOST_PICTURE = 8 << 20  # bytes of a picture that is taken into the page
SHOWN_BY_TABLE = ("name", "protocol", "metric", "value", "interval", "n", "layer", "detail", "hits", "answers")
MIME = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def write_page(folders: Sequence[Folder], path: Path) -> dict[str, Any]:
    """Write the page of some runs, or what it shows as JSON where `path` ends in .json; returns what it shows."""
    shown = contents(folders)
    made = json.dumps(_without_pictures(shown), indent=2) + "\n" if path.suffix == ".json" else render(shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, made.encode(errors="replace").decode())  # names of files need not be text
    return _without_pictures(shown)


def replaceable(path: Path) -> Path:
    """`path`, if no file is there or one that this module made; else ValueError."""
    if path.is_file():
        with open(path, "rb") as file:
            beginning = file.read(400)
        if not any(mark in beginning for mark in MARKS):
            raise ValueError(f"out: {path} exists and is no report; choose another --out")
    return path


def render(shown: dict[str, Any]) -> str:
    """The page as HTML. Every text is escaped; figures are SVG that this package drew."""
    from jinja2 import Environment, FileSystemLoader

    rooms = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                        lstrip_blocks=True)  # fmt: skip
    return rooms.get_template("page.html.j2").render(page=shown, data=_without_pictures(shown), colours=COLOURS)


def contents(folders: Sequence[Folder]) -> dict[str, Any]:
    """Everything a page shows, as plain values."""
    runs = [_run(folder, name) for folder, name in zip(folders, comparing.names(folders), strict=True)]
    title = runs[0]["name"] if len(runs) == 1 else f"{len(runs)} runs"
    made = time.strftime("%Y-%m-%d %H:%M")
    return {"generator": MAKER, "made": made, "title": title, "comparison": _comparison(folders), "runs": runs}


def _comparison(folders: Sequence[Folder]) -> dict[str, Any] | None:
    if len(folders) < 2:
        return None
    columns, rows = comparing.overview(folders)
    tables = [_table("Side by side", columns, rows)]
    if rows := comparing.differing(folders):
        tables.append(_table("Settings that differ", ["setting", *columns[1:]], rows))
    if rows := comparing.differences(folders):
        tables.append(_table("Differences", comparing.DIFFERENCES, rows, comparing.DIFFERENCES_NOTE))
    if rows := comparing.over_seeds(folders):
        seeds = ["figure", "runs", "mean", "standard deviation", "95 % interval of the mean"]
        note = "Of runs that differ in their seed alone; the mean of many such runs likely lies in Student's interval."
        tables.append(_table("Over seeds", seeds, rows, note))
    return {"warnings": concerns_together(folders), "curves": _drawn(compared(folders, columns[1:])), "tables": tables}


def _run(folder: Folder, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(folder.path),
        "finished": folder.finished,
        "head": head(folder),
        "answer": answer(folder),
        "warnings": concerns(folder),
        "curves": _drawn(panels(folder)),
        "measurements": [_measured(m) for m in folder.measurements],
        "facts": _facts(folder),
        "pictures": [_picture(path) for path in folder.pictures if path.stat().st_size <= MOST_PICTURE],
    }


# sentences


def head(folder: Folder) -> str:
    """What was trained on what, for how long, and whether it is finished."""
    card, recipe = folder.card, folder.recipe
    encoder = recipe.get("encoder") or (card.get("encoder") or {}).get("name") or "an encoder"
    size = folder.settings.get("views.size") or card.get("image_size")
    options = recipe.get("encoder_options") or (card.get("encoder") or {}).get("options") or {}
    what = f"{encoder}{f' ({_detail(options)})' if options else ''}{f' at {size} px' if size else ''}"
    if not folder.trained:
        source = (card.get("source") or {}).get("checkpoint")
        return f"{what}, {f'converted from {source}' if source else 'weights without a training log'}."
    done = {"pretrain": "pretrained without labels", "finetune": "fine-tuned with labels", "distill": "distilled"}
    how = done.get(folder.kind, "trained")
    if recipe.get("from_scratch"):
        how = "trained with labels from fresh weights"
    images = f"{folder.images:,} images of " if folder.images else ""
    passes = folder.step / folder.epoch if folder.epoch else 0
    epochs = f", {passes:{',.0f' if passes >= 100 else '.3g'}} epochs" if passes else ""
    batch = f" of {several(folder.batch, 'image')}" if folder.batch else ""
    whole = f" of {folder.steps:,}" if folder.steps and not folder.finished else ""
    state = "finished" if folder.finished else "not finished"
    starts = len(folder.segments)
    return (
        f"{what} {how} on {images}{recipe.get('data', 'unknown data')}: {folder.step:,}{whole} steps{batch}{epochs}, "
        f"{duration(folder.seconds)}{f' in {starts} starts' * (starts > 1)}{_where(folder)}; {state}."
    )


def _where(folder: Folder) -> str:
    if not folder.starts:
        return ""
    last = folder.starts[-1]
    count = folder.processes
    place = last.get("gpu") or several(last.get("cores") or 1, "CPU core")
    return f" on {f'{count} processes, ' * (count > 1)}{place}"


def answer(folder: Folder) -> str:
    """What came of it in a sentence: a figure with labels beside what it has to beat, else health with its meaning."""
    found = []
    for task in ("linear", "knn", "finetune", "distill"):
        for m in folder.measurements:
            layers = ("h", "pixels") if task in ("linear", "knn") else (m.rows[0].get("layer"),)
            rows = [row for row in m.rows if row["metric"] in METRICS and row.get("layer") in layers]
            own = next((row for row in rows if row.get("name") not in (*BASELINES, "teacher")), None)
            itself = folder.kind == task  # a fine-tuned run, whose answer is its own figure, not one of a run below
            if m.older or m.task != task or own is None or (m.file == "result.json") != itself:
                continue
            beside = [f"{number(row['metric'], row['value'])} of {_the(row['name'])}" for row in rows
                      if row.get("name") in (*BASELINES, "teacher")
                      and (row["metric"], row.get("protocol")) == (own["metric"], own.get("protocol"))]  # fmt: skip
            found.append(f"{own.get('protocol', task)}: {number(own['metric'], own['value'])} "
                         f"{term(own['metric']).label} {interval(own['metric'], own.get('interval'))} on "
                         f"{several(own.get('n', 0), 'image')} of {m.data}"
                         f"{', beside ' + ' and '.join(beside) if beside else ''}.")  # fmt: skip
            break
    if found:
        return " ".join(found)
    return _health(folder)


def _health(folder: Folder) -> str:
    parts = []
    loss = folder.last("loss")
    if loss is not None and folder.chance:
        parts.append(f"the loss is {loss / folder.chance:.2f} of chance ({loss:.3f} nats)")
    if (top1 := folder.last("contrastive_top1")) is not None and folder.contrastive_chance:
        parts.append(f"{100 * top1:.1f} % of anchors are nearest to their own other view "
                     f"(chance {100 * folder.contrastive_chance:.2g} %)")  # fmt: skip
    if (knn := folder.last("knn_top1")) is not None:
        parts.append(f"nearest neighbours among training images are right for {100 * knn:.1f} %")
    if (std := folder.last("embedding_std")) is not None:
        parts.append(f"the standard deviation of the embedding is {std:.2f} (1 is isotropic, 0 a single point)")
    if (rank := folder.last("rankme")) is not None:
        parts.append(f"the effective rank of h is {rank:.3g}")
    if folder.kind != "pretrain" and loss is not None:
        parts.append(f"the last loss is {loss:.3f} nats")
    if not parts:
        return "Nothing was measured yet."
    return f"Nothing was measured on test images yet. In the log {', '.join(parts)}."


def _the(name: str) -> str:
    return name if name == "raw pixels" else f"the {name}"


# parts of a page


def _table(title: str, columns: list[str], rows: list[list[str]], note: str = "", **more: Any) -> dict[str, Any]:
    return {"title": title, "columns": columns, "rows": rows, "note": note, **more}


def _drawn(found: list[Panel]) -> list[dict[str, Any]]:
    return [_figure(panel) for panel in found]


def _figure(panel: Panel) -> dict[str, Any]:
    keys = [[line.label, colour(k)] for k, line in enumerate(panel.lines)] if len(panel.lines) > 1 else []
    keys += [[panel.level[1], "level"]] if panel.level else []
    keys += [["went on here", "seam"]] if panel.seams else []
    return {"title": panel.title, "unit": panel.unit, "legend": keys, "caption": panel.caption, "svg": draw(panel)}


def _measured(m: Measurement) -> dict[str, Any]:
    """A file of results as a table; what all of its rows share stands below it, once."""
    shared, apart = {}, []
    for name in dict.fromkeys(name for row in m.rows for name in row if name not in SHOWN_BY_TABLE):
        values = [setting(row.get(name)) for row in m.rows]
        if len(set(values)) == 1:
            shared[name] = values[0]
        else:
            apart.append(name)
    chosen = any(row.get("detail") for row in m.rows)
    columns = ["of", "protocol", "layer", "figure", "value", "95 % interval", "n", *apart, *(["detail"] * chosen)]
    rows = [
        [str(row.get("name", "")), str(row.get("protocol", "")), str(row.get("layer", "")), term(row["metric"]).label,
         number(row["metric"], row["value"]), interval(row["metric"], row.get("interval")), f"{row.get('n', 0):,}",
         *(setting(row.get(name)) for name in apart), *([_detail(row.get("detail") or {})] * chosen)]
        for row in m.rows
    ]  # fmt: skip
    bars = [bar(row["value"], row.get("interval")) if term(row["metric"]).unit == "%" else "" for row in m.rows]
    shared |= {"command": m.environment.get("command", ""), "at": m.environment.get("time", "")}
    return _table(
        f"{m.task} on {m.data}" if m.data else m.task, columns, rows, explained([row["metric"] for row in m.rows]),
        file=m.file, older=m.older, shared=[[k, v] for k, v in shared.items() if v], svg=bars,
    )  # fmt: skip


def _detail(detail: dict[str, Any]) -> str:
    return ", ".join(f"{name} {setting(value)}" for name, value in flatten(detail))


def _facts(folder: Folder) -> list[dict[str, Any]]:
    """Settings, environment, data, and what could not be read."""
    tables = []
    if folder.recipe:
        meanings = _meanings(folder.kind)
        rows = [
            [name, setting(value), setting(folder.defaults[name]) if name in folder.defaults else "–",
             meanings.get(name, "")] for name, value in flatten(folder.recipe)
        ]  # fmt: skip
        changed = [row for row in rows if row[1] != row[2]]
        columns = ["setting", "value", "default", "what it is"]
        if folder.defaults:
            tables.append(_table("Settings other than the defaults", columns, changed))
        tables.append(_table("All settings", columns, rows, folded=True))
    if folder.starts:
        columns = list(dict.fromkeys(name for start in folder.starts for name in start))
        rows = [[name, *(setting(start.get(name)) for start in folder.starts)] for name in columns]
        names = ["start", *(str(k + 1) for k in range(len(folder.starts)))]
        tables.append(_table("Environment of each start", names, rows))
    source = {**folder.data, **{f"card: {k}": v for k, v in (folder.card.get("source") or {}).items()}}
    if folder.kind == "pretrain":
        source["checks during pretraining"] = f"on {checked_on(folder)}"
    if folder.weights:
        source["hash of the weights"] = folder.weights
    if source:
        tables.append(_table("Data and weights", ["", ""], [[k, setting(v)] for k, v in source.items()]))
    if folder.bad:
        note = "" if len(folder.bad) <= MOST_BAD else f"The first {MOST_BAD} of {len(folder.bad):,}."
        rows = [list(row) for row in folder.bad[:MOST_BAD]]
        tables.append(_table("Images that could not be read", ["path", "reason"], rows, note))
    return tables


def _meanings(kind: str) -> dict[str, str]:
    """What each setting of a task is, from the docstrings of its fields, those of its parts included."""
    from docstring_parser import parse_from_object  # which jsonargparse reads docstrings with

    def told(task: type, prefix: str = "") -> dict[str, str]:
        found = {prefix + p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(task).params}
        for part in fields(task):
            if is_dataclass(part.type):
                found |= told(part.type, f"{prefix}{part.name}.")
        return found

    task = task_of(kind)
    return told(task) if task else {}


def _picture(path: Path) -> dict[str, str]:
    coded = base64.b64encode(path.read_bytes()).decode()
    return {"name": path.name, "src": f"data:image/{MIME[path.suffix.lower()]};base64,{coded}"}


def _without_pictures(shown: Any) -> Any:
    """The same without drawings and pixels."""
    if isinstance(shown, dict):
        return {k: _without_pictures(v) for k, v in shown.items() if k not in ("svg", "src")}
    return [_without_pictures(v) for v in shown] if isinstance(shown, list) else shown
