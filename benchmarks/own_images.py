"""Own images: the settings of `simclr suggest` beside the best of a search, and random weights beside those of another
set.

    python benchmarks/own_images.py SET [SET ...] --out FOLDER [--budget 150] [--seeds 3] [--init RUN] [--search false]

SET: labelled images with a training and a test split. The suggested settings are those for a CPU and `--budget`
seconds, with the speed that the rules estimate, so that runs beside other work have as many steps as on free cores. The
search changes one of them at a time (`CHANGES`; other sizes of view at equal time by the same estimate) and measures a
linear classifier on a tenth of the training images, which takes no part in pretraining, with the first seed. The
suggested settings, the best of the search and the suggested settings from the weights in `--init` are then trained on
all training images and measured once on the test images, with every seed, beside raw pixels and the untrained network.
Without the search only the suggested settings are trained. Finished runs in FOLDER are not repeated. Prints tables in
Markdown (top-1 in %, mean ± standard deviation over the seeds) and writes FOLDER/SET.json.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rounds
import torch

from simclr import Knn, Linear, Pretrain
from simclr.data import open_source
from simclr.data.specs import open_for_pretraining
from simclr.report.advice import SIZES, Facts, epochs_in, estimated_rate, suggest, widths_for
from simclr.report.suggestions import nested
from simclr.runs.machine import Device, Machine
from simclr.tasks.measuring import measure_once
from simclr.tasks.suggest import measure
from simclr.tasks.sweep import measure_held_out, with_settings

CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 2.0},
    {"lr": 8.0},
    {"temperature": 0.5},
    {"views.strength": 1.0},
    {"views.crop_area": [0.08, 1.0]},
)
SEARCHED = "linear-holdout.json"
WORKERS = {"accelerator": "cpu", "workers": 0}


def main() -> None:
    """Run every set and print its tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=150.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--search", choices=("true", "false"), default="true")
    arguments = parser.parse_args()
    for spec in arguments.sets:
        name = Path(spec).stem
        content = measure_set(spec, arguments.out / name, arguments)
        (arguments.out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def measure_set(spec: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one set, which are printed as tables."""
    facts = replace(measure(open_for_pretraining(spec), torch.device("cpu")), budget=arguments.budget)
    base = with_settings(
        Pretrain(data=spec, machine=Machine(**WORKERS)), flat(nested(suggest(facts))) | {"knn_every": 0}
    )
    print(f"\n{folder.name}: {facts.images:,} images of {facts.side} px, views of {base.views.size} px\n")
    searched, every = [], ()
    if arguments.search == "true":
        every = ({}, *CHANGES, *other_sizes(facts, base.views.size))
        print("| searched | epochs | linear, held out |\n|---|---|---|")
    for changes in every:
        label = ", ".join(f"{name} {value}" for name, value in changes.items() if "." not in name or "views" in name)
        task = replace(
            with_settings(base, changes), held_out=facts.images // 10, out=folder / "search" / (slug(changes) or "base")
        )
        task()
        value = measure_held_out(task, Linear(run=task.folder, data=spec, baselines=False, out=task.folder / SEARCHED,
                                              machine=Device(**WORKERS)))["value"]  # fmt: skip
        searched.append({"changes": changes, "epochs": task.epochs, "held_out": value})
        print(f"| {label or 'suggested'} | {task.epochs:g} | {100 * value:.1f} |", flush=True)
    best = max(searched, key=lambda row: row["held_out"], default={"changes": {}})
    arms = {"suggested": base, "best of the search": with_settings(base, best["changes"])}
    if arguments.init:
        start = {"encoder": None, "encoder_options": {}}
        arms["suggested, from weights"] = replace(base, init=arguments.init, **start)
    if not best["changes"]:
        del arms["best of the search"]
    rows = {label: dict(test(task, folder / slug({label: ""}), arguments.seeds)) for label, task in arms.items()}
    print("\n| | kNN | linear |\n|---|---|---|")
    for label, row in ({**next(iter(rows.values()))["baselines"]} | rows).items():
        print(f"| {label} | {text(row['knn'])} | {text(row['linear'])} |", flush=True)
    return {**rounds.machine(), "budget": arguments.budget, "search": searched, "best": best["changes"], "test": rows}


def other_sizes(facts: Facts, size: int) -> Iterator[dict[str, Any]]:
    """Yield the changes of settings to the next smaller and the next larger size of view, in the same time."""
    place = SIZES.index(size)
    for other in (*SIZES[max(place - 1, 0) : place], *SIZES[place + 1 : place + 2]):
        epochs = epochs_in(facts, estimated_rate(facts, other))
        yield {"views.size": other, "image_size": 2 * other, "encoder_options.widths": widths_for(other),
               "epochs": epochs, "warmup_epochs": epochs / 20}  # fmt: skip


def test(task: Pretrain, folder: Path, seeds: int) -> Iterator[tuple[str, Any]]:
    """Train with every seed and yield the accuracies on the test images by classifier; with the first seed those of raw
    pixels and of the untrained network, too."""
    values: dict[str, list[float]] = {"knn": [], "linear": []}
    baselines: dict[str, dict[str, list[float]]] = {}
    k = min(20, len(open_source(task.data, "train")))
    for seed in range(seeds):
        run = replace(task, seed=seed, out=folder / f"seed-{seed}")
        run()
        common: dict[str, Any] = {"run": run.folder, "data": task.data, "machine": Device(**WORKERS)}
        for name, evaluation in (("knn", Knn(k=k, **common)), ("linear", Linear(**common))):
            evaluation = replace(evaluation, baselines=seed == 0, out=run.folder / f"{name}-test.json")
            measure_once(evaluation)
            for row in json.loads(evaluation.out.read_text())["results"]:
                if row["role"] == "model":
                    values[name].append(row["value"])
                else:
                    baselines.setdefault(row["name"], {})[name] = [row["value"]]
    yield from values.items()
    yield "baselines", baselines


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by dotted names."""
    views = {f"views.{name}": value for name, value in settings["views"].items()}
    return {name: value for name, value in settings.items() if name != "views"} | views


def slug(changes: dict[str, Any]) -> str:
    """Return the name of a folder for changes of settings."""
    first = next(iter(changes), "")
    return "-".join(f"{first} {changes.get(first, '')}".replace(",", "").replace("[", "").replace("]", "").split())


def text(values: list[float]) -> str:
    """Return mean and deviation in percent."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
