"""Settings of the stages of `simclr v2` after the pretraining: fine-tuning as the paper's and as the default, and
self-distillations of the latter, at the paper's temperature, at 1, and by SGD.

    python benchmarks/v2_defaults.py RUN DATA --fraction 0.05 --out FOLDER [--seed 0]

RUN: a pretraining with a head of at least two layers on the training split of DATA. The accuracy is on the test split
of DATA, so for a choice of settings DATA must be training images with some of them held out as its test split. Finished
runs in FOLDER are not repeated. Prints one line per stage, and writes them to FOLDER/seed-SEED.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from simclr.runs.machine import Machine
from simclr.runs.recipe import saved_recipe
from simclr.tasks.adaptation import settings_for
from simclr.tasks.distill import Distill
from simclr.tasks.finetune import FineTune
from simclr.tasks.linear import Linear
from simclr.tasks.measuring import measure_once
from simclr.tasks.students import SMALL
from simclr.tasks.v2_defaults import FINETUNE


def main() -> None:
    """Run the stages one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    parser.add_argument("--fraction", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run, out = arguments.run, arguments.out / f"seed-{arguments.seed}"
    common: dict[str, Any] = {"data": arguments.data, "seed": arguments.seed, "machine": Machine(workers=0)}
    fraction, found = {"fraction": arguments.fraction}, {}

    def show(name: str, result: dict[str, Any]) -> None:
        add(name, next(row for row in result["results"] if row["metric"] == "top1" and row["role"] == "model"))

    def add(name: str, row: dict[str, Any]) -> None:
        found[name] = {key: row[key] for key in ("value", "interval", "n")}
        print(f"{name}: {100 * row['value']:.1f} %", flush=True)

    probe = measure_once(Linear(run=run, baselines=False, out=out / "linear.json", **fraction, **common))
    add("linear", probe)
    paper = FineTune(run=run, out=out / "finetune-v2", **FINETUNE, **fraction, **common)
    show("fine-tuned, finetune-v2", paper())
    adapted = FineTune(
        run=run,
        out=out / "adapted",
        head_layers=1,
        **_typed(settings_for(probe["detail"]["labels"])),
        **fraction,
        **common,
    )
    show("fine-tuned, from the probe", adapted())
    saved = saved_recipe(run)
    learning = {name: saved[name] for name in ("optimizer", "lr", "scaling", "batch", "weight_decay")}
    for name, settings in {
        "self-distilled, temperature 0.1": learning | {"temperature": 0.1, "temperature_squared": True},
        "self-distilled": learning,
        "self-distilled, SGD": _typed(SMALL) | {"weight_decay": saved["weight_decay"]},
    }.items():
        folder = out / name.replace(", ", "-").replace(" ", "-")
        show(name, Distill(teacher=adapted.folder, out=folder, epochs=saved["epochs"] / 2, **settings, **common)())
    out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")


def _typed(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


if __name__ == "__main__":
    main()
