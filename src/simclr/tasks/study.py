"""The papers' ablations on a user's own data: each member an ordinary run, measured on held-out labels."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lightning_fabric import Fabric

from simclr.data import Source
from simclr.data.specs import open_for_pretraining
from simclr.evaluation.protocol import open_labelled
from simclr.runs.files import require_folder_path
from simclr.runs.recipe import plain
from simclr.runs.results import provenance
from simclr.tasks.finetune import FineTune
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES, Ablation, Member, Then
from simclr.tasks.studies.outcome import Outcome, differences, summary, table, write
from simclr.training.sampler import BatchSampler

K = 20  # neighbours
ELSEWHERE = {"run", "data", "out", "machine"}  # settings of a measurement that the weights or their run answer for


class Planned(NamedTuple):
    """One member with one seed."""

    label: str
    seed: int
    chain: tuple[Any, ...]
    """tasks, each of which goes on from the one before"""


@dataclass(frozen=True, kw_only=True)
class Study(Pretrain):
    """Run one of the papers' ablations: several pretrainings that differ in one thing, measured and put in a table.

    The settings below are those of the base that all members share, and are given as for `simclr pretrain`; a recipe
    serves as base. Each member is an ordinary run in a folder of its own: interrupted, the same command goes on, and
    what is finished is not run again. Without a name the studies are listed. Figures of the papers stand beside ours
    where they give any.
    """

    command: ClassVar[str] = "study"

    name: str | None = None
    """the study; none lists them"""
    data: str | None = None
    """labelled images with a training and a test part; but for supcon, members learn from the
    training part without its labels"""
    out: Path | None = None
    """folder of the study; runs/study-NAME-DATA if not given"""
    fresh: bool = False
    """delete what earlier runs left in the folders of the members and start over"""
    seed: int = 0
    """of the first of the runs of each member; the others count on from it"""
    seeds: int = 1
    """runs of each member"""
    only: tuple[str, ...] = ()
    """members to run, by their labels; all if not given"""
    measure: tuple[Literal["linear", "knn"], ...] = ("linear", "knn")
    """how encoders are measured; fine-tuned and distilled networks have a classifier of their own"""
    fraction: float = 0.1
    """head-depth and distillation: share of the labels"""
    dry_run: bool = False
    """print what would be run and where, and stop"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        if not self.measure:
            raise ValueError("measure must hold linear, knn or both")

    def __call__(self) -> dict[str, Any]:
        if self.name is None:
            return listing()
        ablation = found(self.name)
        if self.data is None:
            raise ValueError("study needs data: labelled images to learn from and to be measured on")
        members = self.members(ablation)
        plan = list(self.planned(members))
        train, _ = open_labelled(self.data)
        self.check(plan, open_for_pretraining(self.data))
        if self.dry_run:
            return self.show(plan)
        require_folder_path(self.folder)
        fabric = self.machine.launch()
        failed = self.train(plan, fabric)
        if not fabric.is_global_zero:  # all processes train together; the rest is the work of one
            return {}
        outcomes = []
        for one in plan:
            error = failed.get((one.label, one.seed))
            figures = {} if error else self.figures(one, ablation, len(train))
            outcomes.append(Outcome(*one, figures, error))
        content = {
            "study": self.name, "varies": ablation.varies, "source": ablation.source, "data": self.data,
            "published": ablation.conditions, "seeds": self.seeds, "fraction": self.fraction,
            "base": {k: v for k, v in plain(self.base).items() if k not in ("data", "out", "fresh", "seed")},
            "members": summary(outcomes, self.base, ablation.published, self.folder),
            "code": sorted({row["code"] for one in outcomes for row in one.figures.values()}),
        }  # fmt: skip
        print(f"\nstudy {self.name} on {self.data}: {ablation.varies}; top-1, %")
        print(table(content["members"], ablation.source))
        if ablation.conditions:
            print(f"{ablation.source}: {ablation.conditions}{'; not measured here' if ablation.published else ''}")
        write(content, outcomes, self.folder)
        return content

    def train(self, plan: list[Planned], fabric: Fabric) -> dict[tuple[str, int], str]:
        """Run every task of the plan once; returns why members failed whose training diverged."""
        failed, done = {}, set()
        for number, one in enumerate(plan, 1):
            fabric.print(f"\n[{number}/{len(plan)}] {one.label}, seed {one.seed}")
            try:
                for task in one.chain:
                    if task.folder not in done:
                        task()
                    done.add(task.folder)
            except FloatingPointError as error:  # too high a rate is a finding of a study, not its end
                failed[one.label, one.seed] = str(error)
                fabric.print(f"{one.label}, seed {one.seed}: {error}")
        return failed

    @property
    def base(self) -> Pretrain:
        """What all members share."""
        settings = {f.name: getattr(self, f.name) for f in fields(Pretrain)}
        return Pretrain(**settings | {"out": None})

    @property
    def folder(self) -> Path:
        """Where the study is kept."""
        alone = self.base.folder
        return self.out or alone.with_name(alone.name.replace("pretrain", f"study-{self.name}", 1))

    def members(self, ablation: Ablation) -> dict[str, Member]:
        """All members of the study by label."""
        members = ablation.members(self.base)
        for label in self.only:
            if label not in members:
                close = difflib.get_close_matches(label, members, n=1)
                meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(members)}"
                raise ValueError(f"only: study {self.name} has no member {label!r}; {meant}")
        return members

    def planned(self, members: dict[str, Member]) -> Iterator[Planned]:
        """What is to be run. Members that begin alike share the runs they have in common."""
        for label, member in members.items():
            if self.only and label not in self.only:
                continue
            for seed in range(self.seed, self.seed + self.seeds):
                chain: list[Any] = []
                for k, step in enumerate(member):
                    owner = next(name for name, other in members.items() if other[: k + 1] == member[: k + 1])
                    folder = self.folder / owner / f"seed-{seed}"
                    chain.append(self.task(step, folder, seed, chain[-1].folder if chain else None))
                yield Planned(label, seed, tuple(chain))

    def task(self, step: Pretrain | Then, folder: Path, seed: int, before: Path | None) -> Any:
        """A step of a member as the task to be called."""
        if isinstance(step, Pretrain):
            return replace(step, out=folder, seed=seed, fresh=self.fresh)
        kind = step.task.__name__.lower()
        settings = {"data": self.data, "out": folder / kind, "seed": seed, "machine": self.machine}
        settings |= {"fraction": self.fraction, "fresh": self.fresh, **step.settings}
        return step.task(**settings, **{"run" if step.task is FineTune else "teacher": before})

    def check(self, plan: list[Planned], source: Source) -> None:
        """Complain of what no member could do, before any is run."""
        processes = self.machine.devices * self.machine.nodes
        for one in plan:
            first = one.chain[0]
            try:
                BatchSampler(len(source) - first.held_out, first.batch, 0, 0, processes)
                first.labels(source)
            except ValueError as error:
                raise ValueError(f"{one.label}: {error}; --only names the members to run") from None

    def show(self, plan: list[Planned]) -> dict[str, Any]:
        """Print what would be run."""
        folders = {task.folder: differences(self.base, task) for one in plan for task in one.chain}
        width = max(len(str(folder)) for folder in folders)
        for folder, changed in folders.items():
            said = ", ".join(f"{name} {value}" for name, value in changed.items()) or "as the base"
            print(f"{folder!s:<{width}}  {said}")
        print(f"{len(folders)} runs; nothing was run")
        return {str(folder): changed for folder, changed in folders.items()}

    def figures(self, one: Planned, ablation: Ablation, images: int) -> dict[str, dict[str, Any]]:
        """What a finished member is measured to be, by measure."""
        last = one.chain[-1]
        if not isinstance(last, Pretrain):
            rows = json.loads((last.folder / "result.json").read_text(encoding="utf-8"))["results"]
            return {"classifier": next(r for r in rows if r["metric"] == "top1" and r["name"] != "teacher")}
        found = {}
        for layer in ablation.layers if last.head_layers else ("h",):
            for name in self.measure:
                file = last.folder / f"{name}{'' if layer == 'h' else f'-{layer}'}.json"
                shared = {"run": last.folder, "data": self.data, "layer": layer, "baselines": False, "out": file,
                          "machine": self.machine}  # fmt: skip
                task = Linear(**shared) if name == "linear" else Knn(**shared, k=min(K, images))
                found[f"{name} {layer}"] = measured_once(task)
        return found


def found(name: str) -> Ablation:
    """The study of that name."""
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        meant = f"did you mean {close[0]}?" if close else f"studies are {', '.join(STUDIES)}"
        raise ValueError(f"there is no study {name!r}; {meant}")
    return STUDIES[name]


def listing() -> dict[str, Any]:
    """Print every study with what it varies and how many members it has."""
    counts = {name: len(ablation.members(Pretrain(data=""))) for name, ablation in STUDIES.items()}
    width = max(map(len, STUDIES))
    for name, ablation in STUDIES.items():
        print(f"{name:<{width}}  {counts[name]:>3} members  {ablation.varies} ({ablation.source})")
    return counts


def measured_once(task: Linear | Knn) -> dict[str, Any]:
    """The one result of a measurement, from its file where these weights have been measured so already."""
    if task.out.is_file():
        content = json.loads(task.out.read_text(encoding="utf-8"))
        row, settings = content["results"][0], plain(task)
        alike = all(content["settings"].get(name) == settings[name] for name in settings.keys() - ELSEWHERE)
        if alike and row.get("weights") == provenance(task.run)["weights"]:
            return row
    return task()["results"][0]
