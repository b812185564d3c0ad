"""Search of settings: combinations of values, each an ordinary run, ranked on held-out training images."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import yaml

from simclr.cli.parsing import parse
from simclr.data.multilabel import is_multilabel, present_classes
from simclr.data.specs import labels_for, open_for_pretraining
from simclr.data.splits import HELD_OUT, split_off
from simclr.errors import DataError, SettingError
from simclr.evaluation.figures import figure, write_results
from simclr.evaluation.intervals import bootstrap_interval, difference_interval
from simclr.evaluation.protocol import extract_features, fit_device, models_to_evaluate, with_labels
from simclr.report.comparison import hits
from simclr.report.stages import aligned
from simclr.report.words import interval, number, plural
from simclr.runs.files import require_folder_path, write_together
from simclr.runs.recipe import OF_RUN, flatten, plain
from simclr.settings import check_settings, flat, seconds_of, setting
from simclr.tasks.cells import Cell, check_parallel, describe_work, run_cells, share_of
from simclr.tasks.combinations import combinations, label_of, text_of, values_of
from simclr.tasks.equal_time import LENGTH, epochs_within
from simclr.tasks.knn import Knn
from simclr.tasks.linear import PROTOCOLS, Linear
from simclr.tasks.measuring import K, recorded
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.training import run_folder_for

NOTE = (
    "Intervals are over the held-out images. A combination is not distinguishable from the best if the paired 95 % "
    "interval of their difference includes 0; neither covers the variation between runs."
)
SPLIT = "fitted on train without the hold-out, measured on the hold-out"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Search settings of pretraining on held-out images of the training split: every combination of the values given
    for them, or a random sample of these. The test split is never read.

    The settings to vary are words such as lr=0.5,1,2, views.strength=0.5,1, or a YAML file of lists. The command takes
    the settings of `simclr pretrain`, or a recipe, for all others. A tenth of the training images, or `held_out` of
    them, takes no part in pretraining; encoders are ranked by the accuracy on it of a k-NN or linear classifier that
    learns from the labels of the others. Each combination is an ordinary run in a folder of its own, by default in
    runs/sweep-DATA; the same command, also with more values, continues and does not repeat finished runs. It writes the
    table sweep.csv, sweep.json and best.yaml, the best recipe.
    """

    command: ClassVar[str] = "sweep"

    base: Pretrain = flat()
    data: Any
    """labelled images; only their training split is used"""
    over: tuple[str, ...] = ()
    """settings to vary with their values, such as lr=0.5,1,2; with `samples` also ranges, such as lr=0.1..10"""
    settings: Path | None = None
    """YAML file of settings to vary, each with a list of values"""
    samples: int | None = setting(None, at_least=1)
    """number of random combinations to run; from a range of positive numbers their logarithm is drawn uniformly
    (default: all combinations)"""
    metric: Literal["knn", "linear"] = "knn"
    """classifier whose accuracy on the held-out images ranks the combinations"""
    seeds: int = setting(1, at_least=1)
    """number of runs of each combination, whose mean counts; seeds count up from `seed`"""
    parallel: int = setting(1, at_least=1)
    """number of runs at a time, each in a process of its own with its share of the CPU cores and one of the GPUs"""
    duration: str | None = None
    """time for the training of each run, such as 5min: epochs follow from a measurement of steps, so that networks and
    sizes are compared at equal time (default: `epochs` of each)"""
    dry_run: bool = False
    """list the runs and their folders without running anything"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        varied = values_of(self.over, self.settings, self.samples)
        seconds = math.inf if self.duration is None else seconds_of("duration", self.duration)
        if seconds < math.inf and (self.base.machine.processes > 1 or set(LENGTH) & set(varied)):
            allowed = f"not given with several processes or values of {' or '.join(LENGTH)}"
            raise SettingError("duration", allowed, self.duration)
        source = open_for_pretraining(self.data)
        labels_for("a sweep", source, self.data)
        if is_multilabel(source):
            problem = "has images with several classes, of which a sweep measures no accuracy"
            raise DataError(source.name, problem, "Give it images with one class each")
        held_out = self.base.held_out or max(1, round(HELD_OUT * len(source)))
        rest, held = (with_labels(part) for part in split_off(source, held_out))
        if not len(held) or len(present_classes(rest)) < 2:
            raise DataError(source.name, "has too few labels to hold some out and learn from the others")
        check_parallel(self.base.machine, self.parallel)
        base = replace(self.base, held_out=held_out, machine=share_of(self.base.machine, self.parallel))
        chosen = {label_of(c): c for c in combinations(varied, self.samples, self.base.seed)}
        tasks = {label: with_settings(base, c) for label, c in chosen.items()}
        for task in tasks.values():
            try:
                task.check_images(source)
            except SettingError as error:
                raise error.with_remedy(f"Of {len(source):,} images {held_out:,} are held out") from None
        require_folder_path(self.folder)
        if seconds < math.inf and not self.dry_run:
            lengths = epochs_within(seconds, tasks, self.folder)
            chosen = {label: {**c, **lengths[label]} for label, c in chosen.items()}
            varied = {**varied, **{name: [length[name] for length in lengths.values()] for name in LENGTH}}
            tasks = {label: with_settings(base, c) for label, c in chosen.items()}
        runs = {label: list(self.runs_of(label, task)) for label, task in tasks.items()}
        cells = [self.cell(task, len(rest)) for group in runs.values() for task in group]
        if self.dry_run:
            print("\n".join(str(cell.folder) for cell in cells))
            each = f"{plural(len(cells), 'run')} of {self.duration} of training"
            print(f"{each if self.duration else describe_work(cells, base.epochs)}; nothing was run")
            return chosen
        fabric = self.base.machine.launch()
        failed = run_cells(cells, fabric, self.parallel)
        if not fabric.is_global_zero:
            return {}
        outcomes = [self.outcome(label, chosen[label], group, failed, len(rest)) for label, group in runs.items()]
        outcomes.sort(key=lambda o: -1.0 if o.entry["mean"] is None else o.entry["mean"], reverse=True)
        return self.report(varied, outcomes, len(held))

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return self.base.out or run_folder_for(self.command, self.data)

    def runs_of(self, label: str, task: Pretrain) -> Iterator[Pretrain]:
        """Yield the runs of a combination, one for each seed."""
        for seed in range(self.base.seed, self.base.seed + self.seeds):
            yield replace(task, seed=seed, out=self.folder / label / f"seed-{seed}")

    def evaluation(self, task: Pretrain, labels: int) -> Knn | Linear:
        """Return the evaluation of a run; `labels` is the number of labelled images that the classifier learns from."""
        common: dict[str, Any] = {
            "run": task.folder,
            "data": str(self.data),
            "baselines": False,
            "machine": task.machine,
        }
        common["out"] = task.folder / f"{self.metric}-holdout.json"
        return Linear(**common) if self.metric == "linear" else Knn(k=min(K, labels), **common)

    def cell(self, task: Pretrain, labels: int) -> Cell:
        """Return the cell of a run."""
        evaluation = self.evaluation(task, labels)
        return Cell(
            name=str(task.folder.relative_to(self.folder)),
            folder=task.folder,
            # of several processes the first one measures, at the end
            work=task if task.machine.processes > 1 else partial(train_and_measure, task, evaluation),
            size=float(task.epochs),
            writes=() if task.fresh else (task.folder / "result.json", evaluation.out),
        )

    def outcome(
        self, label: str, settings: Mapping[str, Any], group: list[Pretrain], failed: Mapping[Path, str], labels: int
    ) -> "Outcome":
        """Return the results of a combination."""
        rows = {t.seed: measure_held_out(t, self.evaluation(t, labels)) for t in group if t.folder not in failed}
        values = [row["value"] for row in rows.values()]
        correct = np.mean([hits(row) for row in rows.values()], axis=0) if rows else None
        return Outcome({
            "label": label,
            "settings": dict(settings),
            "mean": float(np.mean(values)) if values else None,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "interval": None if correct is None else bootstrap_interval(correct),
            "runs": {str(t.seed): {"run": str(t.folder.relative_to(self.folder)), "value": rows[t.seed]["value"],
                                   "interval": rows[t.seed]["interval"]} for t in group if t.seed in rows},
            "failed": {str(t.seed): failed[t.folder] for t in group if t.folder in failed},
        }, correct)  # fmt: skip

    def report(self, varied: Mapping[str, Any], outcomes: list["Outcome"], held: int) -> dict[str, Any]:
        """Print the table of the combinations, the best first, write the files, and return the content of
        sweep.json."""
        what = f"{self.metric} top-1 on {held:,} held-out training images of {self.data}"
        entries, best, undecided = [o.entry for o in outcomes], outcomes[0].entry, undecided_with(outcomes)
        rows = [
            [*map(text_of, o["settings"].values()),
             number(o["mean"], "%") + ("" if o["sd"] is None else f" ± {100 * o['sd']:.1f}"),
             interval(o["interval"], "%"),
             "; ".join([*(["not distinguishable from the best"] if o["label"] in undecided else []),
                        *(f"seed {seed} failed" for seed in o["failed"])])] for o in entries
        ]  # fmt: skip
        table = aligned([*varied, "top-1", "95 % interval", ""], rows)
        print(f"\n{plural(len(entries), 'combination')}, {what}\n{table}\n{NOTE}")
        content = {
            "command": self.command, "data": str(self.data), "metric": self.metric, "images": held,
            "varied": dict(varied), "samples": self.samples, "seeds": self.seeds,
            "base": {name: value for name, value in plain(self.base).items() if name not in OF_RUN},
            "combinations": entries, "not_distinguishable_from_best": undecided,
            "passed": not any(entry["failed"] for entry in entries),
        }  # fmt: skip
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows([
            [*varied, "seed", "value", "low", "high", "run"],
            *([*o["settings"].values(), seed, r["value"], *(r["interval"] or ("", "")), r["run"]]
              for o in entries for seed, r in o["runs"].items()),
        ])  # fmt: skip
        texts = {"sweep.csv": lines.getvalue(), "sweep.json": json.dumps(content, indent=2) + "\n"}
        if best["mean"] is not None:
            recipe = {
                name: value for name, value in plain(with_settings(self.base, best["settings"])).items()
                if name not in ("data", "out", "fresh", "machine")
            }  # fmt: skip
            head = (
                f"# best of {plural(len(entries), 'combination')}: {number(best['mean'], '%')} {what}\n"
                f"# 95 % interval {interval(best['interval'], '%')}; {len(undecided)} of the others are not "
                "distinguishable from it\n"
            )
            texts = {"best.yaml": head + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), **texts}
        write_together(self.folder, texts)
        print(f"wrote {', '.join(texts)} in {self.folder}")
        return json.loads(texts["sweep.json"])


class Outcome(NamedTuple):
    """Results of a combination."""

    entry: dict[str, Any]
    """what sweep.json has of it"""
    correct: np.ndarray | None
    """fraction of the runs that are right, for each held-out image; None if all failed"""


def undecided_with(outcomes: list[Outcome]) -> list[str]:
    """Return the labels of the combinations that are not distinguishable from the best, which is the first: the paired
    95 % interval of the difference, over the held-out images, includes 0."""
    best, *others = outcomes
    return [
        other.entry["label"] for other in others
        if best.correct is not None and other.correct is not None
        and difference_interval(best.correct, other.correct)[0] <= 0
    ]  # fmt: skip


def with_settings(base: Pretrain, changes: Mapping[str, Any]) -> Pretrain:
    """Return a task with some settings changed, by dotted names and with values as in a recipe; raise an error for an
    unknown setting or a value that it does not take."""
    settings = {name: value for name, value in plain(base).items() if name not in ("data", "machine")}
    words = [f"--{name}={text_of(value)}" for name, value in (*flatten(settings), *changes.items())]
    built = parse(Pretrain, Sweep.command, (), ["--data=.", *words], suggestions=False)
    return replace(built, data=base.data, machine=base.machine)


def train_and_measure(task: Pretrain, evaluation: Knn | Linear) -> None:
    """Run a pretraining and measure its encoder on the held-out images."""
    task()
    measure_held_out(task, evaluation)


def measure_held_out(task: Pretrain, evaluation: Knn | Linear) -> dict[str, Any]:
    """Return the accuracy of a finished run on the images that are held out of it, from its file if it is there."""
    if content := recorded(evaluation):
        return content["results"][0]
    rest, held = (with_labels(part) for part in split_off(open_for_pretraining(task.data), task.held_out))
    (model,) = models_to_evaluate(task.folder, False)
    bank, queries = (extract_features([model], part, task.machine)[0] for part in (rest, held))
    seen = None if task.init else False  # the weights to start from may have been trained on the held-out images
    fields = {**model.fields, "evaluated_on": "holdout", "seen_in_pretraining": seen, "split": SPLIT}
    if isinstance(evaluation, Knn):
        result = evaluation.measure(evaluation.votes(bank, queries, len(rest.classes)), bank, queries, fields)
    else:
        device = fit_device(bank.features, task.machine)
        classifier, detail = evaluation.fit(bank.to(device), rest)
        scores = classifier(queries.features.to(device)).cpu()
        result = figure(scores, queries.labels, protocol=PROTOCOLS[evaluation.protocol], detail=detail, **fields)
    return write_results([result], evaluation, evaluation.out)["results"][0]
