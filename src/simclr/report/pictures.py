"""Pictures: the figure of a study, and sheets of images with their nearest neighbours."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from simclr.data import Source
from simclr.evaluation.features import Features
from simclr.evaluation.neighbours import neighbours
from simclr.randomness import permutation
from simclr.report.curves import svg_line, svg_text, ticks
from simclr.report.words import is_fraction
from simclr.runs.files import printable

TILE, LARGE_TILE = 64, 112  # pixels, without and with captions; smaller images are enlarged without smoothing
GAP = 4
QUERIES, NEAREST = 10, 9  # rows of a sheet of neighbours, and images beside the first of each
LINE, LETTER = 12, 5  # height of a line and width of a letter of a caption, pixels
PALETTE = ("#0072b2", "#d55e00", "#007a5a", "#a3508a")
STYLE = "text { font: 11px system-ui, sans-serif; fill: #444 } line { stroke: #ccc } .interval { stroke-width: 1.5 }"
WIDTH, ROW, TOP, LABELS = 760, 22, 40, 220  # of the figure of a study, pixels


def study_figure(study: dict[str, Any]) -> str:
    """Return the figure of a study as SVG: the mean of each member with its standard deviation over seeds, and hollow
    diamonds for the published figures; a heat map of means for a study with rows and columns."""
    return heat_map_svg(study) if study.get("grid") else study_svg(study)


def heat_map_svg(study: dict[str, Any]) -> str:
    """Return the means of the first measure of a study by row and column as SVG."""
    means = {label: next(iter(entry["mean"].items()), None) for label, entry in study["members"].items()}
    values = {tuple(study["grid"][label]): 100 * pair[1] for label, pair in means.items() if pair}
    rows, columns = (list(dict.fromkeys(place[k] for place in study["grid"].values())) for k in (0, 1))
    low, high = min(values.values(), default=0.0), max(values.values(), default=1.0)
    measure = next((pair[0] for pair in means.values() if pair), "no figures")
    left, side, tall = 120, 70, 32
    parts = [svg_text("start", 4, 16, 0, f"{study['study']} on {study['data']}: {measure}, top-1, %")]
    parts += [svg_text("middle", left + side * x + side // 2, TOP, 10, name) for x, name in enumerate(columns)]
    for y, row in enumerate(rows):
        at = TOP + 20 + tall * y
        parts.append(svg_text("end", left - 8, at + tall // 2, 4, row))
        for x, column in enumerate(columns):
            if (value := values.get((row, column))) is not None:
                strength = (value - low) / (high - low or 1.0)
                box = f'x="{left + side * x}" y="{at}" width="{side - 2}" height="{tall - 2}"'
                parts.append(f'<rect {box} fill="{PALETTE[0]}" fill-opacity="{0.05 + 0.55 * strength:.2f}"/>')
                parts.append(svg_text("middle", left + side * x + side // 2, at + tall // 2, 4, f"{value:.1f}"))
    return _svg(left + side * len(columns), TOP + 30 + tall * len(rows), parts)


def study_svg(study: dict[str, Any]) -> str:
    """Return the figure of a study as SVG."""
    entries = list(study["members"].values())
    names = list(dict.fromkeys(name for entry in entries for name in entry["mean"] if is_fraction(name)))
    spans = [
        (100 * e["mean"][name], 100 * e["sd"].get(name, 0.0)) for e in entries for name in names if name in e["mean"]
    ]
    published = [e["published"] for e in entries if e["published"] is not None]
    values = [*(m - sd for m, sd in spans), *(m + sd for m, sd in spans), *published] or [0.0, 100.0]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    bottom = TOP + ROW * len(entries)

    def x(value: float) -> float:
        return round(LABELS + (WIDTH - LABELS - 20) * (value - low) / (high - low), 1)

    parts = [svg_text("start", 4, 16, 0, f"{study['study']} on {study['data']}: top-1, %")]
    for value in ticks(low, high):
        parts += [
            svg_line("grid", x(value), TOP - 8, x(value), bottom),
            svg_text("middle", x(value), bottom, 14, f"{value:g}"),
        ]
    for row, (label, entry) in enumerate(study["members"].items()):
        y = TOP + ROW * row + ROW // 2
        parts += [svg_text("end", LABELS - 8, y, 4, label), svg_line("grid", LABELS, y, WIDTH - 20, y)]
        own = [name for name in names if name in entry["mean"]]
        for k, name in enumerate(own):
            mean, sd, colour = 100 * entry["mean"][name], 100 * entry["sd"].get(name, 0.0), _colour(names.index(name))
            at = y + 4 * (k - 0.5 * (len(own) - 1))
            ends = f'x1="{x(mean - sd)}" x2="{x(mean + sd)}" y1="{at}" y2="{at}"'
            parts.append(f'<line class="interval" style="stroke: {colour}" {ends}/>')
            parts.append(f'<circle cx="{x(mean)}" cy="{at}" r="3" fill="{colour}"/>')
        if entry["published"] is not None:
            at = x(entry["published"])
            parts.append(f'<path d="M{at} {y - 5}l5 5l-5 5l-5 -5z" fill="none" stroke="#555"/>')
    keys = [(f"{name}, measured here", _colour(k)) for k, name in enumerate(names)]
    keys += [(f"◇ {study['source']}: {study['published'] or 'published'}", "#555")] if published else []
    for k, (text, colour) in enumerate(keys):
        parts.append(f'<text x="4" y="{bottom + 34 + 15 * k}" style="fill: {colour}">{escape(text)}</text>')
    height = bottom + 34 + 15 * len(keys)
    return _svg(WIDTH, height, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    ground = f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ground}{"".join(parts)}</svg>\n'


def _colour(k: int) -> str:
    return PALETTE[k % len(PALETTE)]


def neighbour_sheet(features: Features, source: Source, *, seed: int = 0) -> Image.Image:
    """Return a sheet whose rows are an image and the other images nearest to it in feature space, nearest first."""
    chosen = torch.from_numpy(permutation(seed, 0, len(features.features))[:QUERIES])
    nearest = neighbours(features.features, features.features[chosen], NEAREST, exclude=chosen)
    rows = torch.cat([chosen[:, None], nearest], 1)
    return rows_of_images([[source.read(i) for i in row] for row in features.indices[rows].tolist()])


def rows_of_images(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[Sequence[str]] | None = None
) -> Image.Image:
    """Return a sheet of images (H, W, C), the first of each row set apart from the others; `captions` are up to two
    lines below each image."""
    side = LARGE_TILE if captions else TILE
    height = side + GAP + (2 * LINE if captions else 0)
    longest = max(map(len, rows))
    sheet = Image.new("RGB", (longest * (side + GAP) + 3 * GAP, len(rows) * height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            corner = GAP + x * (side + GAP) + (2 * GAP if x else 0), GAP + y * height
            sheet.paste(tile(image, side), corner)
            if captions:
                lines = [_shortened(line, side // LETTER) for line in captions[y][x].split("\n")]
                font = ImageFont.load_default(size=10)
                draw.multiline_text((corner[0], corner[1] + side), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet


def tile(image: np.ndarray, size: int = TILE) -> Image.Image:
    """Return an image as a square of `size` pixels: its centre, enlarged by whole pixels or reduced."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    picture = Image.fromarray(displayed(image[top : top + side, left : left + side]))
    return picture.resize((size, size), Image.Resampling.NEAREST if side < size else Image.Resampling.BICUBIC)


def displayed(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C), bytes or values in [0, 1], as RGB bytes: its first three channels, or the first."""
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(shown if shown.dtype == np.uint8 else np.rint(255 * shown).astype(np.uint8))


def _shortened(text: str, length: int) -> str:
    """Return text of at most `length` letters, without its middle if it is longer; Latin letters only, as the font
    has."""
    text = printable(text).encode("latin-1", "replace").decode("latin-1")
    half = (length - 2) // 2
    return text if len(text) <= length else f"{text[:half]}..{text[-half:]}"
