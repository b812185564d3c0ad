"""Pages of thumbnails: sections of captioned images, tables and maps in one HTML file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from simclr.report.curves import COLOURS
from simclr.report.pictures import LARGE_TILE
from simclr.report.templates import render_template
from simclr.report.thumbnails import Reader, thumbnail
from simclr.runs.files import printable, write_atomically

SIDE, CELLS, THUMBNAIL = 900, 24, 34  # of a mosaic: side, cells along a side, side of an image


class Tile(NamedTuple):
    """One image of a page, or its caption alone if there is no image."""

    row: int
    """number of the image, which `Gallery.read` takes"""
    caption: str
    title: str = ""
    """what the page is about, in bold above the caption"""


@dataclass(frozen=True)
class Section:
    """Part of a page."""

    title: str
    tiles: Sequence[Tile] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """cells of a table"""
    shades: Sequence[Sequence[float]] = ()
    """darkness of the cells of a matrix, without its first column, from 0 to 1"""
    compact: bool = False
    """whether the table is narrow enough for a phone"""
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
    write_atomically(path, render_template("gallery.html.j2", page=gallery, side=LARGE_TILE, colours=COLOURS))


def mosaic(points: Float[np.ndarray, "n 2"], names: Sequence[str], read: Reader) -> str:
    """Return a map as SVG, with one image in each cell of a grid that holds any."""
    low, high = points.min(0), points.max(0)
    unit = (points - low) / np.maximum(high - low, 1e-12)
    at = THUMBNAIL / 2 + (SIDE - THUMBNAIL) * np.stack([unit[:, 0], 1 - unit[:, 1]], 1)
    cells = np.minimum((unit * CELLS).astype(int), CELLS - 1)
    parts = []
    for i in np.unique(cells @ (CELLS, 1), return_index=True)[1].tolist():
        if source := thumbnail(read, i, THUMBNAIL):
            x, y = at[i] - THUMBNAIL / 2
            size = f'width="{THUMBNAIL}" height="{THUMBNAIL}"'
            title = f"<title>{escape(printable(names[i]))}</title>"
            parts.append(f'<image x="{x:.1f}" y="{y:.1f}" {size} href="{source}">{title}</image>')
    label = f"map of the embeddings with {len(parts)} of the images"
    return f'<svg class="mosaic" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
