"""Curves of a run as SVG, with the colours of the page in light and dark mode.

They are drawn here rather than by matplotlib, which takes seconds for them: a page is written at the end of every run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from simclr.report.record import RunRecord
from simclr.report.words import term

BINS = 300  # along a curve; each keeps its minimum and maximum, so that no spike is lost
COLOURS = 10  # that the style sheet of the page defines
MARGIN, TOP, BELOW = 56, 24, 38  # around the curves of a panel, pixels
MAIN = ("loss", "contrastive_top1", "train_top1", "agreement", "knn_top1")  # figures that are drawn large

Coordinate = float | int | str


@dataclass(frozen=True)
class Line:
    """One curve: steps and values, (n,) each."""

    label: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Curves over the same axes."""

    title: str
    unit: str
    lines: list[Line]
    level: tuple[float, str] | None = None
    """a reference value and its label"""
    share: bool = False
    """whether a second axis shows the values as fractions of the level"""
    caption: str = ""
    seams: list[int] = field(default_factory=list)
    """steps from which a run was resumed"""
    epoch: float | None = None
    """steps in one pass over the images"""
    from_zero: bool = False
    """whether the vertical axis begins at 0"""
    end: int = 0
    """last step of the runs, which the horizontal axis includes"""
    main: bool = False
    """whether it is one of the panels to look at first"""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels, near those on a screen: text is as large as beside the panel."""
        return (380, 250) if self.main else (280, 175)


GROUPS = (  # names of the log that share a panel; each other name has its own
    ("loss",),
    ("contrastive_top1", "health_contrastive_top1", "train_top1", "agreement"),
    ("knn_top1",),
    ("positive_cosine", "negative_cosine"),
    ("embedding_std", "health_embedding_std"),
    ("rankme", "health_rankme_h", "health_rankme_z"),
    ("lr",),
    ("images_per_s",),
    ("data_wait_percent",),
    ("memory_mb",),
)
COMPARED = ("loss", "contrastive_top1", "knn_top1", "train_top1", "embedding_std", "rankme", "images_per_s")
AMOUNTS = ("%", "% of the time", "images/s", "MB", "dimensions")  # units of panels whose axis begins at 0
SKIPPED = ("step", "seconds", "loss_over_chance")  # the last one is the second axis of the loss


def panels(record: RunRecord) -> list[Panel]:
    """Return the panels of every figure in the log of a run."""
    grouped = {*SKIPPED, *(name for group in GROUPS for name in group)}
    alone = [(name,) for name in record.columns if name not in grouped]
    drawn = [panel for group in (*GROUPS, *alone) if (panel := _panel(record, group)).lines]
    return [panel for panel in drawn if any(len(line.steps) for line in panel.lines)]


def compared(records: Sequence[RunRecord], names: Sequence[str]) -> list[Panel]:
    """Return panels with the same figure of several runs, labelled by their names."""
    shown = []
    for name in COMPARED:
        lines = [_line(record, name, run) for record, run in zip(records, names, strict=True) if record.series(name)]
        if len(lines) > 1:
            chances = {record.chance for record in records if record.series(name)} if name == "loss" else set()
            chance = chances.pop() if len(chances) == 1 else None
            figure = term(name)
            shown.append(
                Panel(figure.label, figure.unit, lines, (chance, "chance") if chance else None, share=bool(chance),
                      caption=figure.meaning, from_zero=figure.unit in AMOUNTS, end=max(f.step for f in records),
                      main=name in MAIN)
            )  # fmt: skip
    return shown


def _panel(record: RunRecord, names: Sequence[str]) -> Panel:
    lines = [_line(record, name, term(name).label) for name in names if record.series(name)]
    first = term(names[0] if len(names) == 1 else next((n for n in names if record.series(n)), names[0]))
    level = None
    if names[0] == "loss" and record.chance:
        level = record.chance, f"chance, {record.chance_formula} = {record.chance:.3f}"
    elif "contrastive_top1" in names and record.series("contrastive_top1") and record.contrastive_chance:
        level = 100 * record.contrastive_chance, f"chance, {100 * record.contrastive_chance:.2g} %"
    elif "embedding_std" in names:
        level = 1.0, "isotropic"
    title = {"positive_cosine": "cosine of views", "rankme": "effective rank"}.get(names[0], first.label)
    caption = explained([name for name in names if record.series(name)])
    if any(name.startswith("health_") and record.series(name) for name in names):
        caption += f"; checks are of {checked_on(record)}"
    seams = [lines[0]["step"] for lines in record.segments[1:]]
    return Panel(title, first.unit, lines, level, names[0] == "loss" and level is not None, caption, seams,
                 record.epoch, first.unit in AMOUNTS or names[0] == "lr", record.step, names[0] in MAIN)  # fmt: skip


def explained(names: Sequence[str]) -> str:
    """Return the meanings of figures, each of them once."""
    meanings: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        meanings.setdefault(term(name).meaning, []).append(term(name).label)
    if len(meanings) == 1:
        return next(iter(meanings))
    return "; ".join(f"{', '.join(labels)}: {meaning}" for meaning, labels in meanings.items() if meaning)


def checked_on(record: RunRecord) -> str:
    """Return the images on which the checks during pretraining are computed, as text."""
    held_out = record.recipe.get("held_out")
    return f"images held out of training ({held_out:,})" if held_out else "training images"


def _line(record: RunRecord, name: str, label: str) -> Line:
    steps, values = np.array(record.series(name)).T
    factor = 100 if term(name).unit == "%" else 1
    return Line(label, *thinned(steps.astype(int), factor * values))


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 2 * BINS + 2 points of a curve that look like all of them: the minimum and the maximum in each of
    BINS equal intervals of the steps, and both ends. Values that are not finite are left out."""
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    if len(steps) <= 2 * BINS:
        return steps, values
    edges = np.linspace(steps[0], steps[-1], BINS + 1)[1:-1]
    chosen = {0, len(steps) - 1}
    for part in np.split(np.arange(len(steps)), np.searchsorted(steps, edges)):
        if len(part):
            chosen |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    rows = sorted(chosen)
    return steps[rows], values[rows]


def draw(panel: Panel) -> str:
    """Return a panel as SVG. Colours are classes of the style sheet: c0, c1, ... for its curves, level and seam."""
    width, height = panel.size
    bottom, right = height - BELOW, width - (MARGIN if panel.share else 12)
    x_low, x_high = 0.0, float(max(panel.end, *(line.steps[-1] for line in panel.lines if len(line.steps)), 1))
    levels = [*([panel.level[0]] if panel.level else ()), *([0.0] if panel.from_zero else ())]
    y_low, y_high = _range([levels, *(line.values for line in panel.lines)], (0.0 if panel.from_zero else 0.06, 0.06))

    def x(step: float | int) -> str:
        return f"{MARGIN + (right - MARGIN) * (step - x_low) / (x_high - x_low):.1f}"

    def y(value: float) -> str:
        return f"{bottom - (bottom - TOP) * (value - y_low) / (y_high - y_low):.1f}"

    across = 5 if panel.main else 3
    parts = []
    for value in ticks(y_low, y_high, 5 if panel.main else 4):
        parts += [svg_line("grid", MARGIN, y(value), right, y(value)),
                  svg_text("end", MARGIN - 5, y(value), 4, _short(value))]  # fmt: skip
    for step in ticks(x_low, x_high, across):
        parts += [svg_line("grid", x(step), bottom, x(step), bottom + 4),
                  svg_text("middle", x(step), bottom, 16, _short(step))]  # fmt: skip
    parts.append(svg_text("middle", (MARGIN + right) / 2, bottom, 34, "step"))
    if panel.share:
        level = panel.level[0]
        parts += [svg_text("start", right + 5, y(share * level), 4, f"{share:.6g}")
                  for share in ticks(y_low / level, y_high / level)]  # fmt: skip
        parts.append(svg_text("end", width, bottom, 34, "÷ chance"))
    if panel.epoch and x_high > panel.epoch:
        for epoch in ticks(x_low / panel.epoch, x_high / panel.epoch, across):
            at = x(epoch * panel.epoch)
            parts += [svg_line("grid", at, TOP, at, TOP - 4), svg_text("middle", at, TOP, -8, _short(epoch))]
        parts.append(svg_text("start", 0, TOP, -8, "epoch"))
    parts += [svg_line("seam", x(seam), TOP, x(seam), bottom) for seam in panel.seams]
    if panel.level:
        parts.append(svg_line("level", MARGIN, y(panel.level[0]), right, y(panel.level[0])))
    for k, line in enumerate(panel.lines):
        points = [(x(step), y(value)) for step, value in zip(line.steps.tolist(), line.values.tolist(), strict=True)]
        tooltip = f"<title>{escape(line.label)}</title>"
        shape = " ".join(f"{a},{b}" for a, b in points)
        bare = 'fill="none" stroke="currentColor"'  # for readers that ignore the style sheet
        parts.append(f'<polyline class="{colour(k)}" {bare} points="{shape}">{tooltip}</polyline>')
        if len(points) < 25:
            parts += [f'<circle class="{colour(k)}" cx="{a}" cy="{b}" r="2.5">{tooltip}</circle>' for a, b in points]
    size, label = f'viewBox="0 0 {width} {height}"', escape(described(panel))
    return f'<svg class="curve" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def described(panel: Panel) -> str:
    """Return the curves as a sentence: first, last and extreme values of each."""
    texts = []
    for line in panel.lines:
        if len(line.values):
            first, last, low, high = (f"{v:.4g}" for v in (*line.values[[0, -1]], line.values.min(), line.values.max()))
            name = f"{line.label} " if len(panel.lines) > 1 else ""
            texts.append(f"{name}from {first} to {last}, between {low} and {high}")
    unit = f", {panel.unit}" if panel.unit else ""
    return f"{panel.title}{unit}, over {panel.end:,} steps: {'; '.join(texts)}"


def bar(value: float, span: Sequence[float] | None) -> str:
    """Return a fraction and its confidence interval as a mark on a bar from 0 to 1."""
    low, high = span or (value, value)
    parts = [svg_line("track", 0, 5, 100, 5), svg_line("span", f"{100 * low:.1f}", 5, f"{100 * high:.1f}", 5)]
    parts.append(svg_line("mark", f"{100 * value:.1f}", 1, f"{100 * value:.1f}", 9))
    return f'<svg class="bar" viewBox="0 0 100 10" role="img" aria-label="{100 * value:.1f} %">{"".join(parts)}</svg>'


def colour(k: int) -> str:
    """Return the style classes of the kth curve of a panel."""
    return f"c{k % COLOURS}" + (" dashed" if k >= COLOURS else "")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` + 1 round numbers between two."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * unit for m in (1, 2, 5, 10) if (high - low) / (m * unit) <= most)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(parts: Sequence[Sequence[float] | np.ndarray], margins: tuple[float, float]) -> tuple[float, float]:
    """Return the range of all numbers, extended by margins (fractions of its length); never empty."""
    values = [float(value) for part in parts if len(part) for value in (min(part), max(part))]
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        high = low + (abs(low) or 1)
    return low - margins[0] * (high - low), high + margins[1] * (high - low)


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value:,.6g}"


def svg_line(kind: str, x1: Coordinate, y1: Coordinate, x2: Coordinate, y2: Coordinate) -> str:
    """Return a line with the style class `kind`."""
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def svg_text(anchor: str, x: Coordinate, y: Coordinate, below: int, content: str) -> str:
    """Return text whose `anchor` (start, middle or end) is `below` pixels below a point."""
    return f'<text text-anchor="{anchor}" x="{x}" y="{y}" dy="{below}">{escape(content)}</text>'
