"""Whether a recipe gives here what it is known to give."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.distributed as dist
import yaml

from simclr.cli.parsing import parse
from simclr.data.specs import unlabelled
from simclr.errors import UsageError
from simclr.evaluation.protocol import labelled
from simclr.runs.environment import environment
from simclr.runs.files import number_existing, require_folder_path, write_atomically
from simclr.runs.machine import Machine
from simclr.runs.recipe import recipe_path
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.pretrain import Pretrain

MEASURES = {"knn": Knn, "linear": Linear}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure on record: top-1 of a measurement on the test part, and how far one run may be from it."""

    value: float
    tolerance: float
    settings: dict[str, Any] = field(default_factory=dict)
    """of the measurement, where they are not its defaults"""

    def __post_init__(self) -> None:
        for name in ("value", "tolerance"):
            given = getattr(self, name)
            if not isinstance(given, int | float) or not 0 <= given <= 1:
                raise TypeError(f"{name} is {given!r}; it must be a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a recipe has under `expected`, which all commands but this one leave aside."""

    data: str | None = None
    """what the figures were taken on"""
    fingerprint: str | None = None
    """of the images learnt from"""
    figures: dict[str, Figure] = field(default_factory=dict)
    """by measurement: knn, linear"""

    @classmethod
    def of(cls, recipe: Path) -> "Expected":
        """Of a recipe file; ValueError for what cannot be understood."""
        try:
            found = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("expected") or {}
            figures = {name: Figure(**one) for name, one in found.get("figures", {}).items()}
            expected = cls(**{**found, "figures": figures})
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(f"{recipe}: expected is not understood: {' '.join(str(error).split())}") from None
        if unknown := set(figures) - set(MEASURES):
            raise ValueError(f"{recipe}: expected.figures are of {', '.join(MEASURES)}, not {', '.join(unknown)}")
        return expected


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Pretrain by a recipe, measure, and say whether the figures are those that the recipe has on record.

    The exit code is 1 where a figure lies outside its tolerance. Where there is none on record, or these are other
    images, the figures are reported unjudged. Interrupted, the same command goes on.
    """

    command: ClassVar[str] = "reproduce"

    recipe: str
    """name of a bundled recipe, or a recipe file"""
    data: str | None = None
    """labelled images; where the recipe names a data set that comes with the package, that one"""
    out: Path | None = None
    """folder for a run folder a seed and reproduce.json; runs/reproduce-RECIPE if not given"""
    seeds: int = 1
    """number of runs, from the recipe's seed on; their mean is judged, by the tolerance of one"""
    fresh: bool = False
    """delete what earlier runs left in `out` and start over"""
    machine: Machine = Machine()
    """device, processes and workers; overrides the recipe's where it differs from the default"""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")

    def __call__(self) -> dict[str, Any]:
        """Print the figures beside those expected and return them; `passed` is None where none was judged."""
        path = Path(recipe_path(self.recipe))
        expected = Expected.of(path)
        data = self.data or (expected.data if expected.data == "sample" else None)
        if data is None:
            known = f", as the recipe's figures are of {expected.data}" if expected.data else ""
            raise ValueError(f"{path.stem} needs --data{known}")
        folder = require_folder_path(self.out or Path("runs") / f"reproduce-{path.stem}")
        runs = self.runs(path, data, folder)
        if self.seeds > 1 and runs[0].machine.devices * runs[0].machine.nodes > 1:
            raise ValueError(
                f"seeds is {self.seeds}; with several processes it must be 1: give each seed its own --out"
            )
        labelled(data)  # complains before anything is computed
        same = expected.fingerprint in (None, unlabelled(data).fingerprint)

        figures = expected.figures or {name: None for name in MEASURES}
        found: dict[str, list[float]] = {name: [] for name in figures}
        measures = [{name: self.measure(name, one, run.out, data) for name, one in figures.items()} for run in runs]
        for run, ways in zip(runs, measures, strict=True):
            run()
            if dist.is_initialized() and dist.get_rank():
                return {"passed": None}  # the first process measures
            for name, way in ways.items():
                found[name].append(way()["results"][-1]["value"])
        rows = [judge(name, values, figures[name] if same else None) for name, values in found.items()]
        print(f"\n{path.stem} on {data}, {self.seeds} seed{'s' * (self.seeds > 1)}, top-1 of the test part in %")
        print("\n".join(row["text"] for row in rows))
        if not expected.figures:
            print("no expectation on record: nothing is judged")
        elif not same:
            print(f"other images than those on record ({expected.data}): nothing is judged")
        verdicts = [row["passed"] for row in rows if row["passed"] is not None]
        result = {"recipe": self.recipe, "data": data, "figures": rows, "passed": all(verdicts) if verdicts else None}
        number_existing(folder / "reproduce.json")
        content = json.dumps({**result, "environment": environment()}, indent=2)
        write_atomically(folder / "reproduce.json", content + "\n")
        print(f"wrote {folder / 'reproduce.json'}")
        return result

    def measure(self, name: str, figure: Figure | None, run: Path, data: str) -> Knn | Linear:
        """The measurement of that name as its figure was taken; ValueError for settings that it does not have."""
        settings = figure.settings if figure else {}
        try:
            return MEASURES[name](run=run, data=data, baselines=False, machine=self.machine, **settings)
        except TypeError as error:
            raise ValueError(f"{self.recipe}: expected.figures.{name}.settings: {error}") from None

    def runs(self, path: Path, data: str, folder: Path) -> list[Pretrain]:
        """A run of the recipe a seed."""
        try:
            first = parse(Pretrain, "pretrain", (), ["--config", str(path), f"--data={data}"])
        except UsageError as error:
            raise ValueError(f"recipe: {self.recipe} is none of simclr pretrain ({error})") from None
        changed = {f.name: v for f in fields(Machine) if (v := getattr(self.machine, f.name)) != f.default}
        seeds = range(first.seed, first.seed + self.seeds)
        machine = replace(first.machine, **changed)
        return [
            replace(first, seed=seed, out=folder / f"seed{seed}", fresh=self.fresh, machine=machine) for seed in seeds
        ]


def judge(name: str, values: list[float], figure: Figure | None) -> dict[str, Any]:
    """A measurement's top-1 of each seed beside the figure on record."""
    mean = float(np.mean(values))
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    text = f"{name:<8}{100 * mean:.1f}{spread}"
    row: dict[str, Any] = {"measure": name, "values": values, "mean": mean, "passed": None}
    if figure:
        within = abs(mean - figure.value) <= figure.tolerance
        row |= {"expected": figure.value, "tolerance": figure.tolerance, "passed": within}
        verdict = "pass" if within else f"FAILED, {'above' if mean > figure.value else 'below'}"
        text += f"   expected {100 * figure.value:.1f}, within {100 * figure.tolerance:.1f}: {verdict}"
    else:
        text += "   unjudged"
    return row | {"text": text}
