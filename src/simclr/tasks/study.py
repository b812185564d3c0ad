"""Ablation studies of the papers on a user's own data: each member is an ordinary run, evaluated on held-out labels."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from simclr.data import Source
from simclr.data.specs import open_for_pretraining
from simclr.errors import Error, RunError, SettingError
from simclr.evaluation.protocol import open_labelled
from simclr.report.words import plural
from simclr.runs.files import require_folder_path
from simclr.runs.recipe import plain
from simclr.settings import check_settings, flat, seconds_of, setting
from simclr.tasks.cells import Cell, check_parallel, describe_work, run_cells, share_of
from simclr.tasks.finetune import FineTune
from simclr.tasks.measuring import Evaluation, measure_together, result_file
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES, Ablation
from simclr.tasks.studies.budget import describe as describe_part
from simclr.tasks.studies.budget import reduce_study
from simclr.tasks.studies.claims import describe, evidence, list_claims, print_claims
from simclr.tasks.studies.figures import evaluations, figures_of
from simclr.tasks.studies.outcome import Outcome, differences, summary, table, write
from simclr.tasks.studies.tuning import count_searches, tuned
from simclr.tasks.training import TaskChain, Training, build_chain, run_folder_for

RESULTS = Path("results")  # folder of finished studies


class MemberRun(NamedTuple):
    """One member of a study with one seed."""

    label: str
    seed: int
    tasks: tuple[Training, ...]
    """tasks, each of which starts from the run before it"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run an ablation study of the papers: several pretrainings that differ in one setting, evaluated and compared.

    The command takes the settings of `simclr pretrain`, which all members share; a recipe serves as base. DATA must
    have labels and a test split; members learn from the training split without its labels, except with supcon. Each
    member is an ordinary run in a folder of its own, by default in runs/study-NAME-DATA; the same command resumes an
    interrupted study and does not repeat finished runs. Published figures are shown if the papers give any. Without a
    name, the studies are listed. At its end a study says which claims of the paper it confirms; --claims lists all
    claims with the evidence of finished studies.
    """

    command: ClassVar[str] = "study"

    base: Pretrain = flat()
    name: str | None = None
    """name of the study (default: list all studies)"""
    data: Any = None
    """labelled images with a training and a test split"""
    seeds: int = setting(1, at_least=1)
    """number of runs of each member; seeds count up from `seed`"""
    only: tuple[str, ...] = ()
    """labels of the members to run (default: all)"""
    measure: tuple[Literal["linear", "knn"], ...] = ("linear", "knn")
    """evaluations of encoders; fine-tuned and distilled networks are evaluated by their own classifiers"""
    fraction: float = setting(0.1, above=0, at_most=1)
    """fraction of the labels to use, the same of each class (selected by a hash of the image's name)"""
    parallel: int = setting(1, at_least=1)
    """number of runs at a time, each in a process of its own with its share of the CPU cores and one of the GPUs"""
    budget: str = "full"
    """time for the whole study, such as 15min, 2h or 1d, by which the epochs, then the seeds, then the members are
    reduced, so that as many claims as possible keep theirs; full: no limit"""
    seconds: float = setting(3.0, above=0)
    """time for each measurement, seconds"""
    tune: bool = False
    """search of the settings of each member first, with the same number of runs for each, on held-out training images
    (study loss)"""
    transfer_to: tuple[str, ...] = ()
    """labelled data sets that the encoders of the study transfer are measured on"""
    dry_run: bool = False
    """list the runs and their folders without running anything"""

    claims: bool = False
    """list the claims of the papers with the evidence of finished studies, without running anything"""
    results: Path = RESULTS
    """folder that is searched for finished studies with claims"""

    def __post_init__(self) -> None:
        check_settings(self)
        seconds_of("budget", self.budget)
        if not self.measure:
            raise SettingError("measure", "linear, knn or both", "none")
        if self.data is None:  # a field of its own so that studies can be listed without data
            object.__setattr__(self, "data", self.base.data)

    def __call__(self) -> dict[str, Any]:
        if self.claims:
            chosen = STUDIES if self.name is None else {self.name: study_named(self.name)}
            if not self.results.is_dir() and self.results != RESULTS:
                raise RunError(self.results, "is not a folder", "--results names one that holds finished studies")
            listed, refused = list_claims(chosen, self.results)
            print_claims(chosen, listed, self.results)
            for error in refused:
                print(f"not read: {error}")
            return {"claims": listed, "refused": [error.path for error in refused]}
        if self.name is None:
            return list_studies()
        ablation = study_named(self.name)
        if self.data is None:
            raise SettingError("data", "given: labelled images to learn from and to evaluate on")
        check_parallel(self.base.machine, self.parallel)
        train, _ = open_labelled(self.data)
        self.check(ablation, open_for_pretraining(self.data))
        study, part = (self, {}) if self.budget == "full" else reduce_study(self, ablation, train)
        if self.dry_run:
            return study.show(ablation, len(train))
        return study.run(tuned(study, ablation) if self.tune else ablation, len(train), part)

    def run(self, ablation: Ablation, images: int, part: dict[str, Any]) -> dict[str, Any]:
        """Run the study and return the content of study.json; `images` is the number of labelled training images, and
        `part` says what a budget leaves out."""
        plan, fabric = list(self.plan(ablation)), self.base.machine.launch()
        failed = run_cells(self.cells(plan, ablation, images), fabric, self.parallel)
        if not fabric.is_global_zero:  # all processes train together; the first one evaluates
            return {}
        outcomes = [self.outcome(member, ablation, images, failed) for member in plan]
        content = {
            "study": self.name,
            "varies": ablation.varies,
            "source": ablation.source,
            "data": self.data,
            "published": ablation.conditions,
            "seeds": self.seeds,
            "fraction": self.fraction,
            "base": {k: v for k, v in plain(self.base).items() if k not in ("data", "out", "fresh", "seed")},
            "labels": list(ablation.members(self.base)),
            "members": summary(outcomes, self.base, ablation.published, self.folder),
            "code": sorted({row["code"] for outcome in outcomes for row in outcome.figures.values()}),
            **({"budget": part} if part else {}),
            "passed": not any(outcome.failed for outcome in outcomes),
        }
        if ablation.grid:
            content["grid"] = {label: list(ablation.grid(label)) for label in content["members"]}
        print(f"\nstudy {self.name} on {self.data}: {ablation.varies}; top-1, %")
        print(table(content["members"], ablation.source))
        if part:
            print(describe_part(part))
        if ablation.conditions:
            print(f"{ablation.source}: {ablation.conditions}{'; not measured here' if ablation.published else ''}")
        content["claims"] = []
        for claim, verdict in zip(ablation.claims, evidence(ablation, content), strict=True):
            print(f"{claim.text}: {describe(verdict)}")
            content["claims"].append({"claim": claim.text, **({} if verdict is None else verdict._asdict())})
        write(content, outcomes, self.folder)
        return content

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return self.base.out or run_folder_for(f"study-{self.name}", self.data)

    def plan(self, ablation: Ablation) -> Iterator[MemberRun]:
        """Yield the runs of the study. Members with the same beginning share the runs they have in common."""
        members = ablation.members(self.base)
        for label in self.only:
            if label not in members:
                close = difflib.get_close_matches(label, members, n=1)
                hint = f"Did you mean {close[0]}?" if close else ""
                raise SettingError("only", f"members of study {self.name} ({', '.join(members)})", label, hint)
        for label, chain in members.items():
            if self.only and label not in self.only:
                continue
            for seed in range(self.base.seed, self.base.seed + self.seeds):
                folders = [self._folder_of(members, chain[: k + 1], seed) for k in range(len(chain))]
                first = {"seed": seed, "machine": share_of(self.base.machine, self.parallel)}
                common = {**first, "side": self.base.side, "fresh": self.base.fresh, "data": self.data,
                          "fraction": self.fraction}  # fmt: skip
                yield MemberRun(label, seed, build_chain(chain, folders, first, common))

    def _folder_of(self, members: dict[str, TaskChain], chain: TaskChain, seed: int) -> Path:
        """Return the run folder of the last task of a chain: that of the first member that begins with the chain."""
        owner = next(label for label, other in members.items() if other[: len(chain)] == chain)
        folder = self.folder / owner / f"seed-{seed}"
        return folder if len(chain) == 1 else folder / chain[-1].task.command

    def check(self, ablation: Ablation, source: Source) -> None:
        """Raise SettingError for a member that cannot be trained, before any is."""
        require_folder_path(self.folder)
        if self.tune and not ablation.tuning:
            raise SettingError("tune", f"false for study {self.name}, which lists no settings to search", True)
        if self.tune and self.base.machine.processes > 1:
            raise SettingError("tune", "false if a run has several processes", True)
        if self.tune and self.budget != "full":
            raise SettingError("budget", "full with tune, whose searches it does not measure", self.budget)
        if ablation.evaluation == "transfer":
            if self.budget != "full":
                allowed = f"full in study {self.name}, whose evaluations take longer than its trainings"
                raise SettingError("budget", allowed, self.budget)
            if not self.transfer_to:
                raise SettingError(
                    "transfer_to", f"given: labelled data sets that study {self.name} measures encoders on"
                )
            if self.base.machine.processes > 1:
                raise SettingError("machine.devices", f"1 in study {self.name}", self.base.machine.devices)
            for spec in self.transfer_to:
                open_labelled(spec, multilabel=True)
        refused: dict[str, SettingError] = {}
        plan = list(self.plan(ablation))
        for member in plan:
            first = member.tasks[0]
            assert isinstance(first, Pretrain)
            try:
                first.check_images(source)
            except SettingError as error:
                refused[member.label] = error
        if refused:
            label, error = next(iter(refused.items()))
            others = ",".join(dict.fromkeys(member.label for member in plan if member.label not in refused))
            rest = f"; --only {others} leaves out what cannot be trained" if others else ""
            raise error.with_remedy(f"This is the {error.field} of member {label}{rest}")

    def show(self, ablation: Ablation, images: int) -> dict[str, Any]:
        """Print and return the runs of the study; `images` is the number of labelled training images."""
        plan = list(self.plan(ablation))
        folders = {t.folder: differences(self.base, t) for member in plan for t in member.tasks}
        width = max(len(str(folder)) for folder in folders)
        for folder, changed in folders.items():
            text = ", ".join(f"{name} {value}" for name, value in changed.items()) or "as the base"
            print(f"{folder!s:<{width}}  {text}")
        searches = plural(count_searches(self, ablation), "run") if self.tune else ""
        work = describe_work(self.cells(plan, ablation, images), self.base.epochs)
        print(f"{work}{f', after {searches} of the searches' if searches else ''}; nothing was run")
        return {str(folder): changed for folder, changed in folders.items()}

    def cells(self, plan: list[MemberRun], ablation: Ablation, images: int) -> list[Cell]:
        """Return a cell for each run of the plan, with its evaluations unless several processes train together."""
        is_alone, cells = self.base.machine.processes == 1, {}
        last = {member.tasks[-1].folder for member in plan} if is_alone else set()
        for member in plan:
            for before, task in zip((None, *member.tasks), member.tasks, strict=False):
                measured = evaluations(self, ablation, task, images) if task.folder in last else []
                cells[task.folder] = Cell(
                    name=str(task.folder.relative_to(self.folder)),
                    folder=task.folder,
                    work=partial(train_and_measure, task, measured),
                    size=passes(task),
                    after=before.folder if before else None,
                    writes=() if task.fresh else (task.folder / "result.json", *map(result_file, measured)),
                )
        return list(cells.values())

    def outcome(self, member: MemberRun, ablation: Ablation, images: int, failed: dict[Path, str]) -> Outcome:
        """Return the result of a member; an evaluation that fails does not end the study."""
        error = next((failed[task.folder] for task in member.tasks if task.folder in failed), None)
        last, figures = member.tasks[-1], {}
        try:
            figures = {} if error else figures_of(ablation, last, evaluations(self, ablation, last, images))
        except Error as raised:
            error = str(raised)
            print(f"{member.label}, seed {member.seed}: {error}")
        return Outcome(*member, figures, error)


def train_and_measure(task: Training, measured: list[Evaluation]) -> None:
    """Run a task, and the evaluations of its network."""
    task()
    measure_together(measured)


def passes(task: Training) -> float:
    """Return the number of passes over all images that a task makes, as a measure of its duration."""
    if isinstance(task, FineTune):
        return task.passes(task.fraction) * task.fraction
    return float(task.epochs)


def study_named(name: str) -> Ablation:
    """Return a study by name."""
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        raise SettingError("name", f"one of {', '.join(STUDIES)}", name, f"Did you mean {close[0]}?" if close else "")
    return STUDIES[name]


def list_studies() -> dict[str, Any]:
    """Print every study with the settings it varies; return the number of members of each."""
    counts = {name: len(ablation.members(Pretrain(data=""))) for name, ablation in STUDIES.items()}
    width = max(map(len, STUDIES))
    for name, ablation in STUDIES.items():
        print(f"{name:<{width}}  {counts[name]:>3} members  {ablation.varies} ({ablation.source})")
    return counts
