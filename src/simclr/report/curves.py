"""Curves of a run as SVG that takes its colours from the page, so that it is as readable in the dark.

Drawn here rather than by matplotlib, which takes seconds for them: a page is written at the end of every run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from simclr.report.record import Folder
from simclr.report.words import term

BINS = 300  # along a curve; each keeps its least and greatest value, so that no spike is lost
COLOURS = 8  # that the page knows
WIDTH, HEIGHT, MARGIN, TOP, BOTTOM = 460, 240, 56, 24, 200  # of a panel

Place = float | int | str  # a coordinate, as it is or as text


@dataclass(frozen=True)
class Line:
    """One curve: steps and values, (n,) each."""

    label: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Panel:
    """What is drawn over the same axes."""

    title: str
    unit: str
    lines: list[Line]
    level: tuple[float, str] | None = None
    """a value to compare with, and what it is"""
    share: bool = False
    """whether a second axis gives the values as shares of the level"""
    caption: str = ""
    seams: list[int] = field(default_factory=list)
    """steps from which a run went on"""
    epoch: float | None = None
    """steps in one pass over the images"""
    from_zero: bool = False
    """whether the values' axis begins at 0, as for amounts it should"""
    end: int = 0
    """the last step of the runs, to which the axis goes at least"""


GROUPS = (  # of the log's names; any other has a panel of its own
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
AMOUNTS = ("%", "% of the time", "images/s", "MB", "dimensions")  # units whose axis begins at 0
SKIPPED = ("step", "seconds", "loss_over_chance")  # the last one's axis is beside that of the loss


def panels(folder: Folder) -> list[Panel]:
    """Every figure of a run's log."""
    grouped = {*SKIPPED, *(name for group in GROUPS for name in group)}
    alone = [(name,) for name in folder.columns if name not in grouped]
    found = [panel for group in (*GROUPS, *alone) if (panel := _panel(folder, group)).lines]
    return [panel for panel in found if any(len(line.steps) for line in panel.lines)]


def compared(folders: Sequence[Folder], names: Sequence[str]) -> list[Panel]:
    """The same figures of several runs, by their names, over each other."""
    found = []
    for name in COMPARED:
        lines = [_line(folder, name, run) for folder, run in zip(folders, names, strict=True) if folder.series(name)]
        if len(lines) > 1:
            chances = {folder.chance for folder in folders if folder.series(name)} if name == "loss" else set()
            chance = chances.pop() if len(chances) == 1 else None
            known = term(name)
            found.append(
                Panel(known.label, known.unit, lines, (chance, "chance") if chance else None, share=bool(chance),
                      caption=known.meaning, from_zero=known.unit in AMOUNTS, end=max(f.step for f in folders))
            )  # fmt: skip
    return found


def _panel(folder: Folder, names: Sequence[str]) -> Panel:
    lines = [_line(folder, name, term(name).label) for name in names if folder.series(name)]
    first = term(names[0] if len(names) == 1 else next((n for n in names if folder.series(n)), names[0]))
    level = None
    if names[0] == "loss" and folder.chance:
        level = folder.chance, f"chance, {folder.chance_form} = {folder.chance:.3f}"
    elif "contrastive_top1" in names and folder.series("contrastive_top1") and folder.contrastive_chance:
        level = 100 * folder.contrastive_chance, f"chance, {100 * folder.contrastive_chance:.2g} %"
    elif "embedding_std" in names:
        level = 1.0, "isotropic"
    title = {"positive_cosine": "cosine of views", "rankme": "effective rank"}.get(names[0], first.label)
    caption = explained([name for name in names if folder.series(name)])
    if any(name.startswith("health_") and folder.series(name) for name in names):
        caption += f"; checks are of {checked_on(folder)}"
    seams = [lines[0]["step"] for lines in folder.segments[1:]]
    return Panel(title, first.unit, lines, level, names[0] == "loss" and level is not None, caption, seams,
                 folder.epoch, first.unit in AMOUNTS or names[0] == "lr", folder.step)  # fmt: skip


def explained(names: Sequence[str]) -> str:
    """What figures mean, each meaning once."""
    meanings: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        meanings.setdefault(term(name).meaning, []).append(term(name).label)
    if len(meanings) == 1:
        return next(iter(meanings))
    return "; ".join(f"{', '.join(labels)}: {meaning}" for meaning, labels in meanings.items() if meaning)


def checked_on(folder: Folder) -> str:
    """The images of the checks during pretraining."""
    aside = folder.recipe.get("held_out")
    return f"images held out of training ({aside:,})" if aside else "training images"


def _line(folder: Folder, name: str, label: str) -> Line:
    steps, values = np.array(folder.series(name)).T
    factor = 100 if term(name).unit == "%" else 1
    return Line(label, *thinned(steps.astype(int), factor * values))


def thinned(steps: np.ndarray, values: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """At most 2 * bins + 2 points of a curve that look like all of them: of each of `bins` equal parts of the steps
    the least and the greatest value, and the two ends. What is not finite is left out."""
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    if len(steps) <= 2 * bins:
        return steps, values
    edges = np.linspace(steps[0], steps[-1], bins + 1)[1:-1]
    chosen = {0, len(steps) - 1}
    for part in np.split(np.arange(len(steps)), np.searchsorted(steps, edges)):
        if len(part):
            chosen |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    rows = sorted(chosen)
    return steps[rows], values[rows]


def draw(panel: Panel) -> str:
    """A panel as SVG whose colours are classes of the page: c0, c1 ... for its lines, level and seam for the others."""
    x_low, x_high = 0.0, float(max(panel.end, *(line.steps[-1] for line in panel.lines if len(line.steps)), 1))
    levels = [*([panel.level[0]] if panel.level else ()), *([0.0] if panel.from_zero else ())]
    y_low, y_high = _range([levels, *(line.values for line in panel.lines)], (0.0 if panel.from_zero else 0.06, 0.06))
    right = WIDTH - (MARGIN if panel.share else 12)

    def x(step: float | int) -> str:
        return f"{MARGIN + (right - MARGIN) * (step - x_low) / (x_high - x_low):.1f}"

    def y(value: float) -> str:
        return f"{BOTTOM - (BOTTOM - TOP) * (value - y_low) / (y_high - y_low):.1f}"

    parts = []
    for value in ticks(y_low, y_high):
        parts += [_line_of("grid", MARGIN, y(value), right, y(value)),
                  _text("end", MARGIN - 5, y(value), 4, _short(value))]  # fmt: skip
    for step in ticks(x_low, x_high):
        parts += [_line_of("grid", x(step), BOTTOM, x(step), BOTTOM + 4),
                  _text("middle", x(step), BOTTOM, 16, _short(step))]  # fmt: skip
    parts.append(_text("middle", (MARGIN + right) / 2, BOTTOM, 32, "step"))
    if panel.share:
        level = panel.level[0]
        parts += [_text("start", right + 5, y(share * level), 4, f"{share:.6g}")
                  for share in ticks(y_low / level, y_high / level)]  # fmt: skip
        parts.append(_text("end", WIDTH, BOTTOM, 32, "÷ chance"))
    if panel.epoch and x_high > panel.epoch:
        for epoch in ticks(x_low / panel.epoch, x_high / panel.epoch):
            at = x(epoch * panel.epoch)
            parts += [_line_of("grid", at, TOP, at, TOP - 4), _text("middle", at, TOP, -8, _short(epoch))]
        parts.append(_text("start", 0, TOP, -8, "epoch"))
    parts += [_line_of("seam", x(seam), TOP, x(seam), BOTTOM) for seam in panel.seams]
    if panel.level:
        parts.append(_line_of("level", MARGIN, y(panel.level[0]), right, y(panel.level[0])))
    for k, line in enumerate(panel.lines):
        points = [(x(step), y(value)) for step, value in zip(line.steps.tolist(), line.values.tolist(), strict=True)]
        told = f"<title>{escape(line.label)}</title>"
        shape = " ".join(f"{a},{b}" for a, b in points)
        bare = 'fill="none" stroke="currentColor"'  # where a reader leaves the style sheet aside
        parts.append(f'<polyline class="{colour(k)}" {bare} points="{shape}">{told}</polyline>')
        if len(points) < 25:
            parts += [f'<circle class="{colour(k)}" cx="{a}" cy="{b}" r="2.5">{told}</circle>' for a, b in points]
    label = escape(f"{panel.title} over steps")
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def bar(value: float, span: Sequence[float] | None) -> str:
    """A share and its interval as a mark between 0 and 1."""
    low, high = span or (value, value)
    parts = [_line_of("track", 0, 5, 100, 5), _line_of("span", f"{100 * low:.1f}", 5, f"{100 * high:.1f}", 5)]
    parts.append(_line_of("mark", f"{100 * value:.1f}", 1, f"{100 * value:.1f}", 9))
    return f'<svg class="bar" viewBox="0 0 100 10" role="img" aria-label="{100 * value:.1f} %">{"".join(parts)}</svg>'


def colour(k: int) -> str:
    """The classes of the kth line of a panel."""
    return f"c{k % COLOURS}" + (" dashed" if k >= COLOURS else "")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers between two."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * unit for m in (1, 2, 5, 10) if (high - low) / (m * unit) <= most)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(parts: Sequence[Sequence[float] | np.ndarray], margins: tuple[float, float]) -> tuple[float, float]:
    """The least and greatest of all numbers with margins, as shares of their distance; apart even where one only is."""
    found = [float(value) for part in parts if len(part) for value in (min(part), max(part))]
    low, high = min(found), max(found)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        high = low + (abs(low) or 1)
    return low - margins[0] * (high - low), high + margins[1] * (high - low)


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value:,.6g}"


def _line_of(kind: str, x1: Place, y1: Place, x2: Place, y2: Place) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(anchor: str, x: Place, y: Place, below: int, words: str) -> str:
    return f'<text text-anchor="{anchor}" x="{x}" y="{y}" dy="{below}">{escape(words)}</text>'
