"""Curves of a run as SVG that takes its colours from the page, so that it is as readable in the dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simclr.report.folders import Folder
from simclr.report.words import term

BINS = 300  # along a curve; each keeps its least and greatest value, so that no spike is lost
COLOURS = 8  # that the page knows
INK, FAINT = "#010101", "#020202"
SIZE = 4.6, 2.5  # inches


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
SKIPPED = ("step", "seconds", "loss_over_chance")  # the last one's axis is beside that of the loss


def panels(folder: Folder) -> list[Panel]:
    """Every figure of a run's log."""
    logged = dict.fromkeys(name for line in folder.lines for name in line if name not in SKIPPED)
    alone = [(name,) for name in logged if not any(name in group for group in GROUPS)]
    found = [panel for group in (*GROUPS, *alone) if (panel := _panel(folder, group)).lines]
    return [panel for panel in found if any(len(line.steps) for line in panel.lines)]


def compared(folders: Sequence[Folder]) -> list[Panel]:
    """The same figures of several runs over each other."""
    found = []
    for name in COMPARED:
        lines = [_line(folder, name, folder.name) for folder in folders if folder.series(name)]
        if len(lines) > 1:
            chances = {folder.chance for folder in folders if folder.series(name)} if name == "loss" else set()
            chance = chances.pop() if len(chances) == 1 else None
            known = term(name)
            found.append(
                Panel(known.label, known.unit, lines, (chance, "chance") if chance else None, share=bool(chance),
                      caption=known.meaning)
            )  # fmt: skip
    return found


def _panel(folder: Folder, names: Sequence[str]) -> Panel:
    lines = [_line(folder, name, term(name).label) for name in names if folder.series(name)]
    first = term(names[0] if len(names) == 1 else next((n for n in names if folder.series(n)), names[0]))
    level = None
    if names[0] == "loss" and folder.chance:
        level = folder.chance, f"chance, ln(2N - 1) = {folder.chance:.3f}"
    elif "contrastive_top1" in names and folder.series("contrastive_top1") and folder.contrastive_chance:
        level = 100 * folder.contrastive_chance, f"chance, {100 * folder.contrastive_chance:.2g} %"
    elif "embedding_std" in names:
        level = 1.0, "isotropic"
    title = {"positive_cosine": "cosine of views", "rankme": "effective rank"}.get(names[0], first.label)
    meanings = dict.fromkeys(f"{term(n).label}: {term(n).meaning}" for n in names if folder.series(n))
    caption = first.meaning if len(lines) == 1 else "; ".join(meanings)
    if any(n.startswith("health_") for n in names) and any(n.startswith("health_") for n in folder.lines[-1] or ()):
        caption += f"; checks are of {checked_on(folder)}"
    seams = [lines[0]["step"] for lines in folder.segments[1:]]
    return Panel(title, first.unit, lines, level, names[0] == "loss" and level is not None, caption, seams,
                 folder.epoch)  # fmt: skip


def checked_on(folder: Folder) -> str:
    """The images of the checks during pretraining."""
    aside = folder.recipe.get("held_out")
    return f"images held out of training ({aside:,})" if aside else "training images"


def _line(folder: Folder, name: str, label: str) -> Line:
    steps, values = zip(*folder.series(name), strict=True)
    factor = 100 if term(name).unit == "%" else 1
    return Line(label, *thinned(np.array(steps), factor * np.array(values, dtype=float)))


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


def draw(panel: Panel, name: str) -> str:
    """A panel as SVG for a page; `name` keeps its parts apart from those of other figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    axis = figure.add_axes((0.13, 0.18, 0.74 if panel.share else 0.83, 0.64))
    for k, line in enumerate(panel.lines):
        axis.plot(line.steps, line.values, label=line.label, color=_colour(k), linewidth=1.3,
                  linestyle=("-", "--", ":")[k // COLOURS % 3], marker="o" if len(line.steps) < 25 else "",
                  markersize=3)  # fmt: skip
    if panel.level:
        axis.axhline(panel.level[0], color=INK, linestyle=":", linewidth=1, label=panel.level[1])
    for k, seam in enumerate(panel.seams):
        axis.axvline(seam, color=FAINT, linestyle="--", linewidth=1, label=None if k else "went on here")
    axis.set_xlabel("step", color=INK)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:,.6g}")
    axis.margins(x=0.01)
    if panel.share:
        level = panel.level[0]
        side = axis.secondary_yaxis("right", functions=(lambda y: y / level, lambda y: y * level))
        _dress(side)
        side.set_ylabel("÷ chance", color=INK)
    if panel.epoch and panel.lines[0].steps[-1] > panel.epoch:
        top = axis.secondary_xaxis("top", functions=(lambda x: x / panel.epoch, lambda x: x * panel.epoch))
        _dress(top)
        top.set_xlabel("epoch", color=INK)
    _dress(axis)
    if len(panel.lines) + bool(panel.level) + bool(panel.seams) > 1:
        axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, name, f"{panel.title} over steps")


def forest(rows: Sequence[tuple[str, float, tuple[float, float] | None]], unit: str, name: str, title: str) -> str:
    """Figures as points with their intervals, one a line, from the top."""
    from matplotlib.figure import Figure

    height = 0.7 + 0.24 * len(rows)
    figure = Figure(figsize=(7, height))
    axis = figure.add_axes((0.42, 0.5 / height, 0.55, 1 - 0.6 / height))
    for y, (_, value, span) in enumerate(rows):
        if span:
            axis.plot(span, (y, y), color=_colour(0), linewidth=2, solid_capstyle="butt")
        axis.plot([value], [y], color=_colour(0), marker="o", markersize=5)
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(unit, color=INK)
    axis.grid(axis="x", color=FAINT, linewidth=0.4)
    _dress(axis)
    return _svg(figure, name, title)


def _colour(k: int) -> str:
    return f"#0303{k % COLOURS:02d}"


def _dress(axis: object) -> None:
    axis.tick_params(colors=INK, labelsize=8, width=0.6)
    for spine in axis.spines.values():
        spine.set(color=FAINT, linewidth=0.6)
    axis.patch.set_visible(False)


def _svg(figure: object, name: str, title: str) -> str:
    import matplotlib

    figure.patch.set_visible(False)
    file = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    plain = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    with matplotlib.rc_context(plain):
        figure.savefig(file, format="svg", metadata=empty)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[\w.]+_\d+"| (?:width|height)="[\d.]+pt"', "", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for colour, variable in ((INK, "ink"), (FAINT, "faint"), *((_colour(k), f"c{k}") for k in range(COLOURS))):
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
