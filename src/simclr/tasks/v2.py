"""SimCLRv2 as a chain of runs: pretraining, fine-tuning with few labels, self-distillation, students, and baselines."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lightning_fabric import Fabric

from simclr.data import Source
from simclr.data.splits import TEST_FRACTION
from simclr.errors import SettingError
from simclr.evaluation.protocol import open_labelled
from simclr.models.card import Card
from simclr.models.options import ENCODERS
from simclr.report import stages as report
from simclr.report.page import require_report_path, write_page
from simclr.report.reading import read_run
from simclr.report.resources import rough_duration
from simclr.report.stages import Stage
from simclr.runs.environment import code_hash
from simclr.runs.files import require_folder_path
from simclr.runs.recipe import is_import_path
from simclr.settings import check_settings, flat, setting
from simclr.tasks.distill import Distill
from simclr.tasks.estimate import Rehearsed, planned_cards, rehearse
from simclr.tasks.finetune import FineTune
from simclr.tasks.labelled import LabelSubset
from simclr.tasks.linear import Linear
from simclr.tasks.measuring import measure_once
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.students import of_pretraining
from simclr.tasks.training import NextTask, Training, run_folder_for, starts_anew, typed
from simclr.tasks.v2_defaults import SUPERVISED, fine_tuning, half_width
from simclr.training.sampler import BatchSampler

SHARED = ("data", "side", "seed", "fresh", "log_every", "save_every", "max_bad", "tracker", "machine")  # of all stages
OF_CHAIN = {"run", "teacher", "start", "out", "fraction", "labelled", "test", "measure", "from_scratch", *SHARED}
"""settings of a stage that the chain decides"""


class Planned(NamedTuple):
    """A stage of the chain before it is run."""

    name: str
    """its folder"""
    title: str
    task: Training
    start: str | None = None
    """stage that it starts from"""


class Images(NamedTuple):
    """Images of the chain."""

    all: Source
    """images to learn from without labels"""
    labelled: Source
    """images whose labels are used"""
    test: Source


@dataclass(frozen=True, kw_only=True)
class SimCLRv2:
    """Train by the method of SimCLRv2: pretrain a large encoder without labels, fine-tune it with few labels from the
    first layer of its head, distil it to itself, and distil that network to smaller ones, the students.

    The command takes the settings of `simclr pretrain` for the large encoder; the head has three layers unless a recipe
    or a flag says otherwise. Beside them the large encoder and each student are trained from random weights on the same
    labels alone. Each stage is an ordinary run in a folder of its own, OUT/pretrain, OUT/finetune and so on, by default
    in runs/v2-DATA; the same command resumes an interrupted chain and does not repeat finished stages. At the end it
    writes a table of all stages, a figure of accuracy against parameters and a report page. DATA must have labels, of
    which only the selected ones are used; without a test split of its own, a fifth of the images is held out for
    testing.

    With dry_run the stages are listed with the steps, the training time and the memory of a process on this machine,
    from a few steps with random weights.
    """

    command: ClassVar[str] = "v2"

    base: Pretrain = flat()
    labels: str = "10%"
    """labels to learn from: a percentage such as 1% or 10%, the same of each class, or a text file with the names of
    the labelled images, one per line"""
    students: tuple[dict[str, Any], ...] = ()
    """smaller networks to distil to: a list of their settings, such as '{encoder: simclr_resnet18}', which override
    those in `distill` (default: the large encoder at half its width)"""
    finetune: dict[str, Any] = field(default_factory=dict)
    """settings of `simclr finetune` that differ from those of the recipe finetune-v2 (default with at most 10,000
    labels: those of `simclr finetune` without a recipe, from the first layer of the head)"""
    distill: dict[str, Any] = field(default_factory=dict)
    """settings of `simclr distill` that differ from its defaults; epochs are half as many as those of pretraining, and
    optimizer, learning rate, weight decay and batch those of pretraining. If the large encoder is simclr_convnet and
    the optimizer is not given, it is sgd at 1.0 per 256 images, with batches of 64 and crops of at least 0.2 of the
    area"""
    self_distill: dict[str, Any] = field(default_factory=dict)
    """settings of the self-distillation that override those in `distill` (default: the squared temperature as factor of
    the loss; paper: temperature 0.1)"""
    supervised: dict[str, Any] = field(default_factory=dict)
    """settings of `simclr finetune` for training from random weights on the labels alone (default: 200 epochs of sgd
    at 0.1 per 256 images with weight decay 1e-4)"""
    seconds: float = setting(3.0, above=0)
    """time for each measurement, seconds"""
    dry_run: bool = False
    """list the runs and their folders without running anything"""

    def __post_init__(self) -> None:
        check_settings(self)
        if not re.fullmatch(r"\d+(\.\d+)?\s*%", self.labels) and not Path(self.labels).is_file():
            is_missing = re.search(r"[/\\]|\.[a-z]", self.labels, re.I) and not Path(self.labels).exists()
            remedy = "The file does not exist" if is_missing else ""
            raise SettingError("labels", "a percentage such as 10%, or a text file of image names", self.labels, remedy)
        if self.percentage is not None and not 0 < self.percentage <= 100:
            raise SettingError("labels", "above 0% and at most 100%", self.labels)
        if is_import_path(self.base.encoder):
            raise SettingError("encoder", ENCODERS, self.base.encoder)

    def __call__(self) -> dict[str, Any]:
        images = self.images()
        planned = list(self.plan(len(images.labelled)))
        chain = self.check(planned, images)
        if self.dry_run:
            print(self.describe(images))
            return self.show(chain)
        require_report_path(require_folder_path(self.folder) / "report.html")
        fabric = self.base.machine.launch()
        fabric.print(self.describe(images))
        self.train(planned, fabric)
        return self.report(planned) if fabric.is_global_zero else {}

    @property
    def folder(self) -> Path:
        """The folder of the chain."""
        return self.base.out or run_folder_for(self.command, self.base.data)

    @property
    def percentage(self) -> float | None:
        """The percentage of the labels in use; None for a list of images."""
        return float(self.labels.rstrip("% ")) if self.labels.endswith("%") else None

    @property
    def subset(self) -> dict[str, Any]:
        """The settings of a stage that select the labels."""
        return {"labelled": Path(self.labels)} if self.percentage is None else {"fraction": self.percentage / 100}

    @property
    def selection(self) -> LabelSubset:
        """The selection of the labels."""
        return LabelSubset(seed=self.base.seed, **self.subset)

    def suggested(self, given: set[str]) -> dict[str, Any]:
        """Return settings in place of the defaults; the command line asks for them with the names it was given."""
        own = set(type(self).__dataclass_fields__)
        outer = {name for name in given if name.partition(".")[0] not in own}
        pretrain = replace(self.base, out=self.folder / "pretrain")
        settings = pretrain.suggested(outer)
        is_saved = bool(settings) and (pretrain.out / "recipe.yaml").is_file() and not self.base.fresh
        return settings if is_saved else settings | {"head_layers": 3}

    # the stages

    def plan(self, labels: int) -> Iterator[Planned]:
        """Yield the stages in the order in which they run, for a number of labelled images."""
        tuned = fine_tuning(self.finetune, labels, self.base)
        tuned = self.subset | typed(FineTune, "finetune", tuned, OF_CHAIN)
        supervised = self.subset | typed(FineTune, "supervised", SUPERVISED | self.supervised, OF_CHAIN)
        supervised["from_scratch"] = True
        alone = "labels alone, from random weights"
        pretrain = replace(self.base, out=self.folder / "pretrain")
        yield Planned("pretrain", "pretrained, linear classifier on h", pretrain)
        yield self.next("finetune", "fine-tuned", "pretrain", FineTune, tuned)
        yield self.next("self-distilled", "self-distilled", "finetune", Distill, self.distillation("self_distill"))
        for k, student in enumerate(self.students or (half_width(self.base),), 1):
            name, settings = f"student-{k}", self.distillation("students", student)
            yield self.next(name, "distilled student", "self-distilled", Distill, settings)
            yield self.next(f"{name}-labels", alone, name, FineTune, supervised)
        yield self.next("scratch", alone, "pretrain", FineTune, supervised)

    def next(self, name: str, title: str, start: str, task: type[Training], settings: dict[str, Any]) -> Planned:
        """Return a stage that starts from another one."""
        shared = {name: getattr(self.base, name) for name in SHARED}
        step = NextTask(task, settings)
        return Planned(name, title, step.after(self.folder / start, self.folder / name, shared), start)

    def distillation(self, name: str, student: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the settings of a distillation: those of pretraining as far as the paper keeps them, then `distill`,
        then its own."""
        itself = {"temperature_squared": True, **self.distill, **self.self_distill}
        own = itself if student is None else self.distill | student
        settings = typed(Distill, name, of_pretraining(vars(self.base), self.base.machine.processes, own), OF_CHAIN)
        if settings.get("label_weight") and self.percentage is None:
            raise SettingError(f"{name}.label_weight", "0 with a list of labelled images", settings["label_weight"])
        return settings | ({} if self.percentage is None else {"fraction": self.percentage / 100})

    def images(self) -> Images:
        """Return the images of the chain."""
        source, _ = self.base.sources()
        train, test = open_labelled(self.base.data)
        return Images(source, self.base.scaled(self.selection.subset(train, test=test)[0]), test)

    def describe(self, images: Images) -> str:
        """Return the numbers of images of the chain as text."""
        held = f", {100 * TEST_FRACTION:g} % held out since there is no test split"
        return (
            f"{images.all.name}: {len(images.all):,} images to learn from; labels of {len(images.labelled):,}, "
            f"{self.selection.describe_classes(images.labelled)}; {len(images.test):,} test images"
            f"{'' if images.test.has_own_split else held}"
        )

    def check(self, planned: Sequence[Planned], images: Images) -> list[Rehearsed]:
        """Return the tasks of the stages with their images; raise an error for a stage that cannot run, before any
        does."""
        base, processes = self.base, self.base.machine.processes
        tuned = next(stage.task for stage in planned if isinstance(stage.task, FineTune))
        if tuned.head_layers > base.head_layers:
            raise SettingError("finetune.head_layers", f"at most head_layers ({base.head_layers})", tuned.head_layers)
        chain = [
            Rehearsed(s.task, images.labelled if isinstance(s.task, FineTune) else images.all,
                      self.folder / (s.start or "")) for s in planned
        ]  # fmt: skip
        for task, source, _ in chain:
            BatchSampler(len(source), task.largest_batch(len(source), processes), 0, 0, processes)
        planned_cards(chain)
        return chain

    def train(self, planned: Sequence[Planned], fabric: Fabric) -> None:
        """Run the stages that are not finished. A stage whose start has changed since, as after an interrupted --fresh,
        begins anew."""
        for number, stage in enumerate(planned, 1):
            fabric.print(f"\n[{number}/{len(planned)}] {stage.name}: {stage.title}")
            is_old = stage.start is not None and starts_anew(self.folder / stage.start, stage.task.folder)
            (replace(stage.task, fresh=True) if is_old else stage.task)()

    # what is shown

    def report(self, planned: Sequence[Planned]) -> dict[str, Any]:
        """Write table, figure and page of a finished chain; return the content of v2.json."""
        stages = [self.outcome(stage) for stage in planned]
        differences = report.differences(stages)
        content: dict[str, Any] = {
            "command": self.command, "data": str(self.base.data), "labels": self.labels, "seed": self.base.seed,
            "stages": {stage.name: stage._asdict() for stage in stages}, "differences": differences,
            "code": code_hash(),
        }  # fmt: skip
        used = f"labels of {self.labels}" if self.percentage is None else f"{self.labels} of the labels"
        title = f"SimCLRv2 on {self.base.data}, {used}: top-1"
        chapter = report.chapter(title, stages, differences, self.folder / "v2.svg")
        print(report.chapter_text(chapter))
        content = report.write(content, report.accuracy_svg(stages, f"{title}, %"), self.folder)
        write_page([read_run(stage.task.folder) for stage in planned], self.folder / "report.html", chapter)
        print(f"wrote {self.folder / 'v2.json'}, v2.svg and report.html")
        return content

    def outcome(self, stage: Planned) -> Stage:
        """Return a finished stage with its accuracy; that of the pretrained encoder is of a linear classifier on the
        same labels."""
        folder = stage.task.folder
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        rows = [measure_once(self.linear(folder))] if stage.start is None else result["results"]
        row = next(row for row in rows if row["metric"] == "top1" and row["role"] == "model")
        size = report.size_of(Card.read(folder))
        return Stage(stage.name, stage.title, *size, row, read_run(folder).seconds, result.get("loss_over_uniform"))

    def linear(self, run: Path) -> Linear:
        """Return the linear evaluation of a run on the labels in use."""
        base = self.base
        return Linear(run=run, data=base.data, baselines=False, out=run / "linear.json", machine=base.machine,
                      seed=base.seed, **self.subset)  # fmt: skip

    def show(self, chain: Sequence[Rehearsed]) -> dict[str, Any]:
        """Print and return the stages with steps, time and memory; nothing is written."""
        needs = rehearse(chain, self.base.machine, self.seconds)
        rows = [
            [folder, need.encoder, f"{need.parameters / 1e6:.3g} M", f"{need.steps:,} of {need.batch:,}",
             "finished" if need.seconds is None else rough_duration(need.seconds),
             "" if need.memory is None else f"{need.memory / 1e9:.2g} GB"] for folder, need in needs.items()
        ]  # fmt: skip
        print(report.aligned(["run", "encoder", "parameters", "steps", "time", "memory"], rows))
        total = rough_duration(sum((need.seconds or 0.0 for need in needs.values()), 0.0))
        print(f"{len(rows)} stages, {total} of training steps as measured on this machine; nothing was run")
        return {folder: need._asdict() for folder, need in needs.items()}
