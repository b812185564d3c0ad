"""Pages of thumbnails: sections of captioned images, tables and a scatter plot in one HTML file."""

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from simclr.errors import UnreadableImage
from simclr.report.pictures import LARGE_TILE, tile
from simclr.report.templates import render_template
from simclr.runs.files import printable, write_atomically

QUALITY = 80  # of the JPEG thumbnails
SIDE, POINTS, CELLS, THUMBNAIL = 900, 5000, 24, 34  # of a map: side, points, cells along a side, side of an image
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a3508a", "#8a6d00", "#3f8fc4", "#b23a48", "#555e68")
Reader = Callable[[int], np.ndarray]  # from the number of an image to its pixels (H, W, 3)


class Tile(NamedTuple):
    """One image of a page, or its caption alone if there is no image."""

    row: int
    """number of the image, which `Gallery.read` takes"""
    caption: str


@dataclass(frozen=True)
class Section:
    """Part of a page."""

    title: str
    tiles: Sequence[Tile] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """cells of a table"""
    svg: str = ""
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Page of thumbnails."""

    title: str
    answer: str
    """main result as a sentence"""
    sections: Sequence[Section]
    read: Reader | None = None
    """reads an image; None if there are no images"""
    made: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))

    def thumbnail(self, row: int, side: int = LARGE_TILE) -> str:
        """Return an image as a data URI; an empty text if it cannot be read."""
        return thumbnail(self.read, row, side)


def write_gallery(gallery: Gallery, path: Path) -> None:
    """Write a page as one HTML file without scripts that needs no other file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_template("gallery.html.j2", page=gallery, side=LARGE_TILE))


def thumbnail(read: Reader | None, row: int, side: int) -> str:
    """Return an image as a data URI; an empty text if there is none or it cannot be read."""
    if read is None:
        return ""
    try:
        picture = tile(read(row), side)
    except UnreadableImage:
        return ""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def scatter(
    points: Float[np.ndarray, "n 2"],
    names: Sequence[str],
    labels: Int[np.ndarray, " n"] | None = None,
    read: Reader | None = None,
) -> str:
    """Return a map as SVG: at most 5,000 points, evenly spaced over the rows, in the colours of their labels, with
    their names as titles; and, with `read`, one image in each cell of a grid that holds any."""
    low, high = points.min(0), points.max(0)
    unit = (points - low) / np.maximum(high - low, 1e-12)
    at = 20 + (SIDE - 40) * np.stack([unit[:, 0], 1 - unit[:, 1]], 1)
    parts = []
    for i in np.unique(np.linspace(0, len(at) - 1, min(len(at), POINTS)).astype(int)).tolist():
        colour = COLOURS[int(labels[i]) % len(COLOURS)] if labels is not None and labels[i] >= 0 else COLOURS[-1]
        title = f"<title>{escape(printable(names[i]))}</title>"
        parts.append(f'<circle cx="{at[i, 0]:.1f}" cy="{at[i, 1]:.1f}" r="2.5" fill="{colour}">{title}</circle>')
    if read is not None:
        cells = np.minimum((unit * CELLS).astype(int), CELLS - 1)
        for i in np.unique(cells @ (CELLS, 1), return_index=True)[1].tolist():
            if source := thumbnail(read, i, THUMBNAIL):
                x, y = at[i] - THUMBNAIL / 2
                title = f"<title>{escape(printable(names[i]))}</title>"
                size = f'width="{THUMBNAIL}" height="{THUMBNAIL}"'
                parts.append(f'<image x="{x:.1f}" y="{y:.1f}" {size} href="{source}">{title}</image>')
    return f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="map of the embeddings">{"".join(parts)}</svg>'
