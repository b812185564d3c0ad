"""Stages of a chain of runs: their table, the differences between them, and accuracy against parameters as a figure."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from simclr.evaluation.intervals import difference_interval
from simclr.models.card import Card
from simclr.report.comparison import hits
from simclr.report.curves import svg_line, svg_text, ticks
from simclr.report.words import duration, interval, number, points
from simclr.runs.environment import environment
from simclr.runs.files import write_together

COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a3508a", "#8a6d00", "#555e68")
STYLE = "text { font: 11px system-ui, sans-serif; fill: #444 } line { stroke: #ccc }"
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 56, 620, 40, 320  # of the figure, pixels
COLUMNS = ["run", "training", "encoder", "parameters", "top-1", "95 % interval", "n", "time"]
FEW = 100  # test images below which a stage must be far better than another one to be so significantly
ABOVE_UNIFORM = 1.02  # of the loss of uniform probabilities, which rounding and the last batch do not explain
DIFFERENCES = ["runs", "difference in top-1, 95 % interval"]
DIFFERENCES_NOTE = (
    "The interval is a bootstrap over the test images, which both networks are tested on; it does not cover the "
    "variation between training runs."
)


class Stage(NamedTuple):
    """A trained network of a chain and its figure."""

    name: str
    """folder of its run"""
    title: str
    """how it was trained; stages with the same title are one kind in the figure"""
    encoder: str
    parameters: int
    """number of parameters of the encoder"""
    row: Mapping[str, Any]
    """its accuracy, as a result file has it"""
    seconds: float
    """training time"""
    loss_over_uniform: float | None = None
    """last loss of a distillation, divided by that of uniform probabilities"""


def size_of(card: Card) -> tuple[str, int]:
    """Return an encoder as text and its number of parameters."""
    options = ", ".join(f"{name} {value}" for name, value in (card.encoder.get("options") or {}).items())
    count = sum(p.numel() for p in card.plan_encoder().parameters())
    return f"{card.encoder['name']}{f' ({options})' if options else ''}", count


def table(stages: Iterable[Stage]) -> list[list[str]]:
    """Return the rows of the table of stages, by `COLUMNS`."""
    return [
        [s.name, s.title, s.encoder, f"{s.parameters / 1e6:.3g} M", number(s.row["value"], "%"),
         interval(s.row["interval"], "%"), f"{s.row['n']:,}", duration(s.seconds)] for s in stages
    ]  # fmt: skip


def notes(stages: Sequence[Stage]) -> list[str]:
    """Return what a reader of the table should know, as sentences: too few test images, and stages that did not
    learn."""
    n = min(stage.row["n"] for stage in stages)
    few = f"n = {n} test images are too few to compare the stages: each is {100 / n:.1f} points."
    constant = [f"{s.name} (class {s.row['constant']})" for s in stages if s.row.get("constant") is not None]
    nothing = f"One class is predicted for all or nearly all images, so nothing was learned: {', '.join(constant)}."
    above = [f"{s.name}: {text}" for s in stages if (text := above_uniform(s.loss_over_uniform))]
    return [few] * (n < FEW) + [nothing] * bool(constant) + above


def above_uniform(ratio: float | None) -> str:
    """Return a warning on the last loss of a distillation divided by that of uniform probabilities; empty if it needs
    none."""
    if ratio is None or ratio <= ABOVE_UNIFORM:
        return ""
    where = f"the loss ends at {ratio:.3g} times that of uniform probabilities"
    return f"{where}: the student is worse than chance. Lower lr."


def difference(stage: Stage, other: Stage) -> dict[str, Any]:
    """Return by how much the accuracy of a stage exceeds that of another one, on the same test images."""
    a, b = hits(stage.row), hits(other.row)
    paired = a is not None and b is not None and stage.row["answers"] == other.row["answers"]
    return {
        "stage": stage.name,
        "against": other.name,
        "value": stage.row["value"] - other.row["value"],
        "interval": difference_interval(a, b) if paired else None,
    }


def differences(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return the differences that the second paper is about."""
    by_name = {stage.name: stage for stage in stages}
    against = {"finetune": ("scratch",), "self-distilled": ("finetune",)}
    against |= {f"student-{k}": ("self-distilled", f"student-{k}-labels") for k in range(1, len(stages))}
    return [difference(stage, by_name[other]) for stage in stages for other in against.get(stage.name, ())]


def difference_rows(differences: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of differences, by `DIFFERENCES`."""
    return [[f"{d['stage']} – {d['against']}", points(d["value"], "%", d["interval"])] for d in differences]


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as text."""
    lines = [columns, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def chapter(
    title: str, stages: Sequence[Stage], differences: Iterable[Mapping[str, Any]], picture: Path
) -> dict[str, Any]:
    """Return the tables of a chain, with notes, and its picture as the report page takes them."""
    rows, compared = table(stages), difference_rows(differences)
    tables = [
        {"title": "Stages", "columns": COLUMNS, "rows": rows, "note": "\n".join(notes(stages))},
        {"title": "Differences", "columns": DIFFERENCES, "rows": compared, "note": DIFFERENCES_NOTE},
    ]
    return {"title": title, "tables": tables, "picture": picture}


def chapter_text(chapter: Mapping[str, Any]) -> str:
    """Return the title and the tables of a chain as text."""
    stages, compared = (aligned(table["columns"], table["rows"]) for table in chapter["tables"])
    note = chapter["tables"][0]["note"]
    return "\n".join(["", chapter["title"], stages, *([note] if note else []), "", compared])


def write(content: dict[str, Any], figure: str, folder: Path) -> dict[str, Any]:
    """Write v2.svg, and v2.json with the environment, unless they are up to date, and return the content of v2.json;
    older files are numbered."""
    path, content = folder / "v2.json", json.loads(json.dumps(content))
    recorded: Any = None
    with contextlib.suppress(OSError, ValueError):
        recorded = json.loads(path.read_text(encoding="utf-8"))
    # the environment differs with each call, also if the chain was finished already
    is_same = isinstance(recorded, dict) and recorded == {**content, "environment": recorded.get("environment")}
    whole = recorded if is_same else {**content, "environment": environment()}
    write_together(folder, {"v2.svg": figure, path.name: json.dumps(whole, indent=2) + "\n"})
    return whole


def accuracy_svg(stages: Sequence[Stage], title: str) -> str:
    """Return accuracy against the number of parameters, on a logarithmic axis, as SVG (v2, Fig. 1). Vertical lines are
    95 % intervals over the test images."""
    sizes = [math.log10(stage.parameters) for stage in stages]
    spans = [stage.row["interval"] or (stage.row["value"],) * 2 for stage in stages]
    low, high = 100 * min(span[0] for span in spans) - 2, 100 * max(span[1] for span in spans) + 2
    small, large = min(sizes) - 0.15, max(sizes) + 0.15

    def x(size: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (size - small) / (large - small), 1)

    def y(percent: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (percent - low) / (high - low), 1)

    parts = [svg_text("start", 4, 16, 0, title), svg_text("middle", (LEFT + RIGHT) / 2, BOTTOM, 32, "parameters")]
    for value in ticks(low, high):
        parts += [svg_line("grid", LEFT, y(value), RIGHT, y(value)),
                  svg_text("end", LEFT - 6, y(value), 4, f"{value:g}")]  # fmt: skip
    for size in sorted(set(sizes)):
        parts += [svg_line("grid", x(size), BOTTOM, x(size), BOTTOM + 4),
                  svg_text("middle", x(size), BOTTOM, 16, f"{10**size / 1e6:.3g} M")]  # fmt: skip
    titles = list(dict.fromkeys(stage.title for stage in stages))
    for stage, size, span in zip(stages, sizes, spans, strict=True):
        kind = titles.index(stage.title)
        at, colour = x(size) + 5 * (kind - (len(titles) - 1) / 2), COLOURS[kind % len(COLOURS)]
        value = 100 * stage.row["value"]
        tooltip = f"<title>{escape(f'{stage.title}, {stage.encoder}: {value:.1f} %')}</title>"
        ends = f'x1="{at}" x2="{at}" y1="{y(100 * span[0])}" y2="{y(100 * span[1])}"'
        parts.append(f'<line style="stroke: {colour}; stroke-width: 1.5" {ends}/>')
        parts.append(f'<circle cx="{at}" cy="{y(value)}" r="4" fill="{colour}">{tooltip}</circle>')
    for k, name in enumerate(titles):
        style = f'style="fill: {COLOURS[k % len(COLOURS)]}"'
        parts.append(f'<text x="{LEFT}" y="{BOTTOM + 52 + 15 * k}" {style}>● {escape(name)}</text>')
    height = BOTTOM + 52 + 15 * len(titles)
    size_of = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    ground = f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size_of}>{ground}{"".join(parts)}</svg>\n'
