"""Few labels: fine-tuning with the defaults of the command line, the linear probe, and training from scratch.

    python benchmarks/few_labels.py RUN DATA --out FOLDER [--labels 1% 10% 5 20 100] [--draws 5] [--scratch false]

`--labels`: percentages of each class, or numbers of images of each class. Each draw selects other labels. The three use
the same labels and the same test images, which are read once a run, after every choice. From scratch: the same network,
crops, batch and number of steps as fine-tuning; its learning rate is one of four, chosen as fine-tuning chooses, on two
halves of the labelled images, of the first draw for all draws of an amount. Finished runs in FOLDER are not repeated.
Prints a table in Markdown (top-1 in %, mean ± standard deviation over the draws, and Student's 95 % interval of
fine-tuning minus linear, draw by draw) and writes FOLDER/summary.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from simclr.cli.parsing import parse
from simclr.data import Source
from simclr.data.splits import holdout_mask
from simclr.evaluation.intervals import seed_interval
from simclr.evaluation.protocol import open_labelled
from simclr.randomness import bits
from simclr.tasks.adaptation import MOST_STEPS, held_out_hits
from simclr.tasks.finetune import FineTune

RATES = (0.25, 0.5, 1.0, 2.0)  # from scratch, per 256 images


def main() -> None:
    """Run every amount of labels and every draw, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", default=["1%", "10%", "5", "20", "100"])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--scratch", choices=("true", "false"), default="true")
    arguments = parser.parse_args()
    train, _ = open_labelled(arguments.data)
    rows: dict[str, dict[str, Any]] = {}
    print("| labels | n | fine-tuned | linear | from scratch | fine-tuned - linear |\n|---|---|---|---|---|---|")
    for labels in arguments.labels:
        draws: dict[str, list[float]] = {"finetune": [], "linear": [], "scratch": []}
        lr = None
        for seed in range(arguments.draws):
            folder = arguments.out / f"{labels.replace('%', '-percent')}-{seed}"
            tuned = fine_tuning(arguments.run, arguments.data, folder, selection(train, labels, seed, folder), seed)
            result = tuned()
            draws["finetune"].append(result["top1"])
            draws["linear"].append(result["linear_top1"])
            if arguments.scratch == "true":
                scratch = from_scratch(tuned, folder)
                lr = lr or rate_of(scratch)
                draws["scratch"].append(replace(scratch, lr=lr)()["top1"])
        draws["margin"] = [a - b for a, b in zip(draws["finetune"], draws["linear"], strict=True)]
        rows[labels] = {name: summary(values) for name, values in draws.items() if values}
        cells = [text(rows[labels].get(name)) for name in ("finetune", "linear", "scratch", "margin")]
        low, high = rows[labels]["margin"].get("interval", (np.nan, np.nan))
        print(f"| {labels} | {arguments.draws} | {' | '.join(cells)} [{100 * low:.1f}, {100 * high:.1f}] |", flush=True)
    (arguments.out / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")


def selection(train: Source, labels: str, seed: int, folder: Path) -> list[str]:
    """Return the words that select labels: a fraction, or a list that is written beside the run."""
    if labels.endswith("%"):
        return ["--fraction", str(float(labels[:-1]) / 100)]
    order = np.argsort(bits(seed, (train.paths.hashes * 2**48).astype(np.uint64)), kind="stable")
    chosen = [order[train.labels[order] == c][: int(labels)] for c in np.unique(train.labels)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.txt")
    file.write_text("\n".join(train.path(int(i)) for i in np.sort(np.concatenate(chosen))) + "\n")
    return ["--labelled", str(file)]


def fine_tuning(run: Path, data: str, folder: Path, words: list[str], seed: int) -> FineTune:
    """Return the fine-tuning that the command line starts without a flag of the method."""
    words = [str(run), data, "--out", str(folder), "--seed", str(seed), "--machine.workers", "0", *words]
    return parse(FineTune, "finetune", ("run", "data"), words)


def from_scratch(tuned: FineTune, folder: Path) -> FineTune:
    """Return the training of the same network from random weights."""
    return replace(tuned, adapt=False, from_probe=False, from_scratch=True,
                   out=folder.with_name(f"{folder.name}-scratch"))  # fmt: skip


def rate_of(task: FineTune) -> float:
    """Return the learning rate of a finished run, or else the one that is best on halves of the labels."""
    if (finished := task.out / "recipe.yaml").is_file():
        return yaml.safe_load(finished.read_text(encoding="utf-8"))["lr"]
    source, _, _ = task.images()
    fabric, half = task.machine.launch(), holdout_mask(source, 0.5, task.seed)
    parts = [source.select(np.flatnonzero(rows), source.split) for rows in (half, ~half)]
    means = {}
    for lr in RATES:
        hits = [held_out_hits(replace(task, lr=lr), fabric, *pair, MOST_STEPS) for pair in (parts, parts[::-1])]
        means[lr] = torch.cat(hits).mean().item()
    return max(means, key=means.__getitem__)


def summary(values: list[float]) -> dict[str, Any]:
    """Return values with mean, deviation and Student's interval, the last two for several values."""
    several = {"sd": float(np.std(values, ddof=1)), "interval": seed_interval(values)} if len(values) > 1 else {}
    return {"values": values, "mean": float(np.mean(values)), **several}


def text(row: dict[str, Any] | None) -> str:
    """Return mean and deviation in percent."""
    return "" if row is None else f"{100 * row['mean']:.1f} ± {100 * row.get('sd', np.nan):.1f}"


if __name__ == "__main__":
    main()
