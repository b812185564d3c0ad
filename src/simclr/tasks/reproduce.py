"""Reproduction: train a recipe and compare its metrics with the reference values recorded in it."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simclr.cli.parsing import parse
from simclr.data.specs import open_for_pretraining
from simclr.errors import DataError, Error, SettingError
from simclr.evaluation.protocol import open_labelled
from simclr.runs.environment import environment
from simclr.runs.files import number_existing, require_folder_path, write_atomically
from simclr.runs.machine import Device, is_first_process
from simclr.runs.reading import read_yaml
from simclr.runs.recipe import recipe_path
from simclr.settings import check_settings, setting
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.pretrain import Pretrain

MEASURES = {"knn": Knn, "linear": Linear}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Reference value: the top-1 accuracy of an evaluation on the test split, and the tolerance for one run."""

    value: float = setting(at_least=0, at_most=1)
    tolerance: float = setting(at_least=0, at_most=1)
    settings: dict[str, Any] = field(default_factory=dict)
    """settings of the evaluation other than its defaults"""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Block `expected` of a recipe, which only `reproduce` reads."""

    data: str | None = None
    """data set that the values were measured on"""
    fingerprint: str | None = None
    """fingerprint of the training images"""
    figures: dict[str, Figure] = field(default_factory=dict)
    """reference values by evaluation: knn, linear"""

    @classmethod
    def read(cls, recipe: Path) -> "Expected":
        """Return the block of a recipe file; raise DataError if it is not valid."""
        try:
            block = (read_yaml(recipe) or {}).get("expected") or {}
            figures = {name: Figure(**values) for name, values in block.get("figures", {}).items()}
            expected = cls(**{**block, "figures": figures})
        except (AttributeError, TypeError, Error) as error:
            raise DataError(recipe, f"block `expected` is not valid ({' '.join(str(error).split())})") from None
        if unknown := tuple(set(figures) - set(MEASURES)):
            problem = f"expected.figures has {', '.join(unknown)}; allowed are {', '.join(MEASURES)}"
            raise DataError(recipe, problem, names=unknown)
        return expected


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Pretrain by a recipe, evaluate, and compare the figures with those that the recipe records.

    The exit code is 1 if a figure lies outside its tolerance. Without recorded figures, or on other images, figures are
    reported without a verdict. The same command resumes an interrupted reproduction.
    """

    command: ClassVar[str] = "reproduce"

    recipe: str
    """name of a bundled recipe, or path of a recipe file"""
    data: str | None = None
    """labelled images; default: the bundled data set, if the recipe names one"""
    out: Path | None = None
    """folder of reproduce.json and of a run folder for each seed (default: runs/reproduce-RECIPE)"""
    seeds: int = setting(1, at_least=1)
    """number of runs, each with its own seed; their mean is compared"""
    fresh: bool = False
    """new start: the run in `out` is deleted once the new one has a checkpoint"""
    machine: dict[str, Any] = field(default_factory=dict)
    """settings of the machine that override the recipe's, such as --machine.devices 2"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        """Print the figures beside the recorded ones and return them; `passed` is None without a verdict."""
        path = Path(recipe_path(self.recipe))
        expected = Expected.read(path)
        data = self.data or (expected.data if expected.data == "sample" else None)
        if data is None:
            raise SettingError("data", f"given: {path.stem} was measured on {expected.data or 'images of your own'}")
        folder = require_folder_path(self.out or Path("runs") / f"reproduce-{path.stem}")
        runs = self.runs(path, data, folder)
        machine = runs[0].machine
        if self.seeds > 1 and machine.processes > 1:
            raise SettingError("seeds", "1 with several processes", self.seeds, "Give each seed an --out of its own")
        open_labelled(data)  # refuses unlabelled data before anything is computed
        same = expected.fingerprint in (None, open_for_pretraining(data).fingerprint)

        figures = expected.figures or dict.fromkeys(MEASURES)
        device = Device(accelerator=machine.accelerator, workers=machine.workers)
        tasks = [
            {name: self.evaluation(name, figure, run.out, data, device) for name, figure in figures.items()}
            for run in runs
        ]
        values: dict[str, list[float]] = {name: [] for name in figures}
        for run, evaluations in zip(runs, tasks, strict=True):
            run()
            if not is_first_process():
                return {"passed": None}  # the first one evaluates
            for name, evaluate in evaluations.items():
                values[name].append(evaluate()["results"][-1]["value"])
        rows = [compare(name, values[name], figure if same else None) for name, figure in figures.items()]
        print(f"\n{path.stem} on {data}, {self.seeds} seed{'s' * (self.seeds > 1)}, top-1 on the test split, %")
        print("\n".join(row["text"] for row in rows))
        if not expected.figures:
            print("no verdict: the recipe records no figures")
        elif not same:
            print(f"no verdict: the recorded figures are of other images ({expected.data})")
        verdicts = [row["passed"] for row in rows if row["passed"] is not None]
        result = {"recipe": self.recipe, "data": data, "figures": rows, "passed": all(verdicts) if verdicts else None}
        number_existing(folder / "reproduce.json")
        content = json.dumps({**result, "environment": environment()}, indent=2)
        write_atomically(folder / "reproduce.json", content + "\n")
        print(f"wrote {folder / 'reproduce.json'}")
        return result

    def evaluation(self, name: str, figure: Figure | None, run: Path, data: str, device: Device) -> Knn | Linear:
        """Return the evaluation of a run with the settings of the recorded figure."""
        settings = figure.settings if figure else {}
        try:
            return MEASURES[name](run=run, data=data, baselines=False, machine=device, **settings)
        except TypeError as error:
            raise DataError(self.recipe, f"expected.figures.{name}.settings: {error}", names=(name,)) from None

    def runs(self, path: Path, data: str, folder: Path) -> list[Pretrain]:
        """Return the pretraining of each seed."""
        words = [f"--machine.{name}={value}" for name, value in self.machine.items()]
        try:
            first = parse(Pretrain, "pretrain", (), ["--config", str(path), f"--data={data}", *words])
        except Error as error:
            raise DataError(path, f"not a recipe of `simclr pretrain` ({error})") from None
        seeds = range(first.seed, first.seed + self.seeds)
        return [replace(first, seed=seed, out=folder / f"seed{seed}", fresh=self.fresh) for seed in seeds]


def compare(name: str, values: list[float], figure: Figure | None) -> dict[str, Any]:
    """Return the top-1 accuracies of all seeds beside the recorded figure."""
    mean = float(np.mean(values))
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    text = f"{name:<8}{100 * mean:.1f}{spread}"
    row: dict[str, Any] = {"measure": name, "values": values, "mean": mean, "passed": None}
    if figure:
        passed = abs(mean - figure.value) <= figure.tolerance
        row |= {"expected": figure.value, "tolerance": figure.tolerance, "passed": passed}
        verdict = "passed" if passed else f"FAILED, {'above' if mean > figure.value else 'below'}"
        text += f"   expected {100 * figure.value:.1f} ± {100 * figure.tolerance:.1f}: {verdict}"
    else:
        text += "   no verdict"
    return row | {"text": text}
