"""Losses at small batches: accuracy on held-out images by loss and batch size, at equal numbers of images.

    python benchmarks/small_batches.py cifar10:FOLDER [--images 5000] [--epochs 30] [--seeds 3] [--out FOLDER]

A small encoder (`simclr_convnet`, views of 16 px) learns from a subset of the training images without their labels;
k-NN and a linear classifier then learn from that subset with labels and are measured on other training images, as many
for each class. The test images are not read. Every run sees the same number of images; the learning rate follows the
square root of the batch size, and is the same for all losses. `--temperatures` adds rows; the schedule goes from 1 to
0.1 and back, five times. Runs are kept in `--runs` and not repeated. Writes results.json and README.md, mean ± standard
deviation.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import rounds
import torch

from simclr import Knn, Linear, Pretrain, Views
from simclr.data import open_source
from simclr.data.source import Source
from simclr.randomness import permutation
from simclr.runs.machine import Device, Machine

HELD_OUT = 2000  # images
DCL_LIKE = ("nt_xent", "dcl", "sogclr")
MEASURES = {"knn": "k-NN, k = 20", "linear": "linear, L-BFGS"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="labelled images that fit in memory, such as cifar10:FOLDER")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--held_out", type=int, default=HELD_OUT)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.2])
    parser.add_argument("--gamma", type=float, default=0.9)
    parser.add_argument("--lr", type=float, default=0.18, help="peak learning rate per square root of the batch")
    parser.add_argument("--runs", type=Path, default=Path("runs/small-batches"))
    parser.add_argument("--out", type=Path, default=Path("results/small-batches"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    data = arguments.runs / f"images-{arguments.images}-{arguments.held_out}.npz"
    if not data.exists():
        write_subset(open_source(arguments.data, "train"), data, arguments.images, arguments.held_out)
    report = {**rounds.machine(), "settings": {k: str(v) for k, v in vars(arguments).items()}, "cells": []}
    for loss, settings in methods(arguments).items():
        for batch in arguments.batches:
            cell = {"loss": loss, "batch": batch, **{name: [] for name in (*MEASURES, "seconds")}}
            for seed in range(arguments.seeds):
                for name, value in measure(arguments, data, loss, {"batch": batch, "seed": seed, **settings}).items():
                    cell[name].append(value)
            report["cells"].append(cell)
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(report["cells"], arguments)
    (arguments.out / "README.md").write_text(text)
    print(text)


def methods(arguments: argparse.Namespace) -> dict[str, dict]:
    """Return the settings of each row of the table by its name."""
    rows = {
        f"{loss}, temperature {t:g}": {"loss": loss, "temperature": t}
        for t in arguments.temperatures
        for loss in DCL_LIKE
    }
    return {**rows, "nt_xent, temperature 1 to 0.1": {"temperature": 1.0, "temperature_min": 0.1}}


def write_subset(source: Source, path: Path, images: int, held_out: int) -> None:
    """Write a training and a test split, both of the training images of `source`, with equally many of each class."""
    order = permutation(0, 0, len(source))
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for label in range(len(source.classes)):
        rows = order[source.labels[order] == label]
        cuts = np.array([images, images + held_out]) // len(source.classes)
        for part, chosen in zip(parts, np.split(rows, cuts), strict=False):
            parts[part].append(chosen)
    arrays = {}
    for part, chosen in parts.items():
        rows = np.sort(np.concatenate(chosen))
        arrays[f"{part}_images"] = np.stack([source.read(i) for i in rows])
        arrays[f"{part}_labels"] = source.labels[rows]
    np.savez(path, **arrays)


def measure(arguments: argparse.Namespace, data: Path, loss: str, settings: dict) -> dict[str, float]:
    """Return the accuracies of one run, in percent, and the seconds of its training."""
    name = f"{loss.replace(', ', '-').replace(' ', '-')}-batch-{settings['batch']}-seed-{settings['seed']}"
    out = arguments.runs / f"{arguments.images}-images-{arguments.epochs:g}-epochs" / name
    device = Device(accelerator="cpu", workers=0)
    start = time.perf_counter()
    result = Pretrain(
        data=str(data), out=out, encoder="simclr_convnet", image_size=32, head_hidden=128, head_features=64,
        views=Views(size=16, strength=0.5, blur=0.0, crop_area=(0.2, 1.0)), lr=arguments.lr, scaling="sqrt",
        weight_decay=1e-4, epochs=arguments.epochs, knn_every=0, save_every=100_000,
        gamma=arguments.gamma, machine=Machine(accelerator="cpu", workers=0), **settings,
    )()  # fmt: skip
    seconds = result.get("seconds", time.perf_counter() - start)
    found = {}
    for command, task in (("knn", Knn), ("linear", Linear)):
        path = out / f"{command}.json"
        if not path.exists():
            task(run=out, data=str(data), baselines=False, machine=device, out=path)()
        found[command] = 100 * json.loads(path.read_text())["results"][0]["value"]
    return {**found, "seconds": seconds}


def table(cells: list[dict], arguments: argparse.Namespace) -> str:
    """Return the figures as Markdown."""
    parts = [
        f"# Losses at small batches\n\n{arguments.images:,} training images, {arguments.epochs:g} epochs, "
        f"{arguments.held_out:,} held-out training images, {arguments.seeds} seeds. Top-1 in %, mean ± standard "
        "deviation over the seeds of pretraining. Command, machine and every run are in results.json."
    ]
    for name, title in MEASURES.items():
        header = f"| {title} | " + " | ".join(f"batch {batch}" for batch in arguments.batches) + " |"
        rows = [header, "|---" * (1 + len(arguments.batches)) + "|"]
        for loss in dict.fromkeys(cell["loss"] for cell in cells):
            values = [describe(cell[name]) for cell in cells if cell["loss"] == loss]
            rows.append(f"| {loss} | " + " | ".join(values) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def describe(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{math.fsum(values) / len(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
