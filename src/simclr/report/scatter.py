"""Map of embeddings as HTML: a point for each image, whose thumbnail and name show when it is pointed at or has the
keyboard focus. It needs no script: the points are the radio buttons of a group, which arrow keys go through."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Int

from simclr.report.curves import COLOURS
from simclr.report.thumbnails import ACROSS, SHEET, Reader, sheets
from simclr.runs.files import printable

POINTS = 10_000  # of a map at most, evenly spaced over the rows
SIDES = ((2_500, 48), (POINTS, 32))  # number of images up to which thumbnails have a side, pixels


def embedding_map(
    points: Float[np.ndarray, "n 2"],
    names: Sequence[str],
    labels: Int[np.ndarray, " n"] | None = None,
    classes: Sequence[str] = (),
    read: Reader | None = None,
    group: str = "map",
) -> str:
    """Return a map: at most 10,000 points in the colours of their labels, with their names, and thumbnails if `read`
    reads the image of a row. `group` is the name of its radio buttons, another one for each map of a page."""
    rows = np.unique(np.linspace(0, len(points) - 1, min(len(points), POINTS)).astype(int))
    low, high = points.min(0), points.max(0)
    at = 100 * (points[rows] - low) / np.maximum(high - low, 1e-12)
    at[:, 1] = 100 - at[:, 1]
    kinds, legend = _colours(len(rows), None if labels is None else labels[rows], classes)
    side = next(side for most, side in SIDES if len(rows) <= most)
    pictures = sheets(read, rows.tolist(), side) if read else []
    dots = []
    for k, (i, kind, (x, y)) in enumerate(zip(rows.tolist(), kinds, at.tolist(), strict=True)):
        sheet, place = divmod(k, SHEET)
        style = f"left:{x:.1f}%;top:{y:.1f}%"
        style += f";--u:{place % ACROSS};--v:{place // ACROSS}" if pictures else ""
        sides = f"{' e' * (x > 50)}{' s' * (y > 50)}{f' t{sheet}' * bool(pictures)}"
        label = printable(names[i]) + (f", {printable(classes[labels[i]])}" if legend and labels[i] >= 0 else "")
        shown = f'class="{kind}{sides}" style="{style}" aria-label="{escape(label)}"'
        dots.append(f'<input type="radio" name="{group}" {shown}>')
    images = "".join(f"#{group} .t{k}::before{{background-image:url({uri})}}" for k, uri in enumerate(pictures))
    return (
        f'<div class="map{" pictured" * bool(pictures)}" id="{group}"><style>{images}</style>'
        f"{_legend(legend, group)}"
        f'<div class="dots" role="radiogroup" aria-label="map of {len(rows):,} embeddings">{"".join(dots)}</div></div>'
    )


def _colours(
    n: int, labels: Int[np.ndarray, " n"] | None, classes: Sequence[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the style class of each of n points, and the style classes with their names: the most frequent labels have
    a colour of their own, the others are grey."""
    if labels is None or not (labels >= 0).any():
        return ["c0"] * n, []
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    frequent = np.sort(np.argsort(-counts, kind="stable")[: min(COLOURS, (counts > 0).sum())])
    kinds = {int(label): f"c{k}" for k, label in enumerate(frequent)}
    legend = [(kind, str(classes[label])) for label, kind in kinds.items()]
    own = [kinds.get(label, "rest") for label in labels.tolist()]
    others = int((counts > 0).sum()) - len(frequent)
    more = [("rest", f"{others} other classes" if others else "no label")] * ("rest" in own)
    return own, legend + more


def _legend(legend: Sequence[tuple[str, str]], group: str) -> str:
    """Return the names of the colours as radio buttons that dim the points of all others."""
    if not legend:
        return ""
    entries = [("all", "all"), *legend]
    buttons = "".join(
        f'<label class="{kind}"><input type="radio" name="{group}-classes" value="{kind}"'
        f"{' checked' * (kind == 'all')}><span>{escape(printable(name))}</span></label>" for kind, name in entries
    )  # fmt: skip
    return f'<div class="legend" role="radiogroup" aria-label="classes to highlight">{buttons}</div>'
