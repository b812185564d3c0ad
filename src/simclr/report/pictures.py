"""Pictures of a run: its loss curve and the nearest neighbours its encoder finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from simclr.data import Source
from simclr.evaluation.features import Features
from simclr.evaluation.neighbours import neighbours
from simclr.randomness import permutation

TILE = 64  # pixels; smaller images are enlarged without smoothing, so that they show what the network saw
GAP = 4


def loss_curve(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss as a share of chance, contrastive top-1 and, where measured, kNN top-1, over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, names in ((left, {"loss_over_chance": "loss ÷ chance"}),
                        (right, {"contrastive_top1": "contrastive top-1", "knn_top1": "kNN top-1"})):  # fmt: skip
        for name, label in names.items():
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else "")
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def study_figure(study: dict[str, Any], path: Path) -> None:
    """What the members of a study reach, with the standard deviation over seeds; hollow: the published figures."""
    from matplotlib.figure import Figure

    labels = list(study["members"])
    entries = [study["members"][label] for label in labels]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(labels)), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(name for entry in entries for name in entry["mean"]):
        points = [(100 * e["mean"][name], y, 100 * e["sd"].get(name, 0.0))
                  for y, e in enumerate(entries) if name in e["mean"]]  # fmt: skip
        x, y, sd = zip(*points, strict=True)
        axis.errorbar(x, y, xerr=sd, fmt="o", capsize=3, label=f"{name}, here")
    published = [(e["published"], y) for y, e in enumerate(entries) if e["published"] is not None]
    if published:
        axis.plot(*zip(*published, strict=True), "D", fillstyle="none", color="grey", label=study["source"])
        figure.supxlabel(f"{study['source']}: {study['published']}", fontsize=7)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("top-1, %")
    axis.set_title(f"{study['study']} on {study['data']}", fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def neighbour_sheet(features: Features, source: Source, *, queries: int = 10, k: int = 9, seed: int = 0) -> Image.Image:
    """Each row: an image, and the k other images nearest to it in feature space, nearest first."""
    chosen = torch.from_numpy(permutation(seed, 0, len(features.features))[:queries])
    nearest = neighbours(features.features, features.features[chosen], k, exclude=chosen)
    rows = torch.cat([chosen[:, None], nearest], 1)
    return rows_of_images([[source.read(i) for i in row] for row in features.indices[rows].tolist()])


def rows_of_images(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """A sheet of images (H, W, 3), the first of each row set apart from what belongs to it."""
    longest = max(map(len, rows))
    sheet = Image.new("RGB", (longest * (TILE + GAP) + 3 * GAP, len(rows) * (TILE + GAP) + GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(tile(image), (GAP + x * (TILE + GAP) + (2 * GAP if x else 0), GAP + y * (TILE + GAP)))
    return sheet


def tile(image: np.ndarray) -> Image.Image:
    """An image as a square of TILE pixels: its centre, enlarged by whole pixels or shrunk."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    picture = Image.fromarray(image[top : top + side, left : left + side])
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if side < TILE else Image.Resampling.BICUBIC)
