"""Ablation studies of the papers on a user's own data: each member is an ordinary run, evaluated on held-out labels."""

import contextlib
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lightning_fabric import Fabric

from simclr.data import Source
from simclr.data.specs import open_for_pretraining
from simclr.errors import DivergedError, Error, RunError, SettingError
from simclr.evaluation.protocol import open_labelled
from simclr.runs.files import require_folder_path
from simclr.runs.recipe import plain
from simclr.runs.results import provenance, read_results
from simclr.settings import check_settings, flat, setting
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies import STUDIES, Ablation
from simclr.tasks.studies.claims import describe, evidence, list_claims
from simclr.tasks.studies.outcome import Outcome, differences, summary, table, write
from simclr.tasks.training import TaskChain, Training, build_chain, run_chain, run_folder_for
from simclr.training.sampler import BatchSampler

K = 20  # number of neighbours
ELSEWHERE = {"run", "data", "out", "machine"}  # settings of an evaluation that are implied by the weights or the run


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
    dry_run: bool = False
    """list the runs and their folders without running anything"""

    claims: bool = False
    """list the claims of the papers with the evidence of finished studies, without running anything"""
    results: Path = Path("results")
    """folder that is searched for finished studies with claims"""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.measure:
            raise SettingError("measure", "linear, knn or both", "none")
        if self.data is None:  # a field of its own so that studies can be listed without data
            object.__setattr__(self, "data", self.base.data)

    def __call__(self) -> dict[str, Any]:
        if self.claims:
            chosen = STUDIES if self.name is None else {self.name: study_named(self.name)}
            return {"claims": list_claims(chosen, self.results)}
        if self.name is None:
            return list_studies()
        ablation = study_named(self.name)
        if self.data is None:
            raise SettingError("data", "given: labelled images to learn from and to evaluate on")
        plan = list(self.plan(ablation))
        train, _ = open_labelled(self.data)
        self.check(plan, open_for_pretraining(self.data))
        if self.dry_run:
            return self.show(plan)
        require_folder_path(self.folder)
        fabric = self.base.machine.launch()
        failed = self.train(plan, fabric)
        if not fabric.is_global_zero:  # all processes train together; the first one evaluates
            return {}
        outcomes = [self.outcome(member, ablation, len(train), failed) for member in plan]
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
        }
        print(f"\nstudy {self.name} on {self.data}: {ablation.varies}; top-1, %")
        print(table(content["members"], ablation.source))
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
                first = {"seed": seed, "fresh": self.base.fresh}
                common = {**first, "data": self.data, "machine": self.base.machine, "fraction": self.fraction}
                yield MemberRun(label, seed, build_chain(chain, folders, first, common))

    def _folder_of(self, members: dict[str, TaskChain], chain: TaskChain, seed: int) -> Path:
        """Return the run folder of the last task of a chain: that of the first member that begins with the chain."""
        owner = next(label for label, other in members.items() if other[: len(chain)] == chain)
        folder = self.folder / owner / f"seed-{seed}"
        return folder if len(chain) == 1 else folder / chain[-1].task.command

    def check(self, plan: list[MemberRun], source: Source) -> None:
        """Raise SettingError for a member that cannot be trained, before any is."""
        processes = self.base.machine.devices * self.base.machine.nodes
        for member in plan:
            first = member.tasks[0]
            try:
                assert isinstance(first, Pretrain)
                BatchSampler(len(source) - first.held_out, first.batch, 0, 0, processes)
                first.labels(source)
            except Error as error:
                raise SettingError("only", "members that can be trained", member.label, str(error)) from None

    def show(self, plan: list[MemberRun]) -> dict[str, Any]:
        """Print and return the runs of the study."""
        folders = {task.folder: differences(self.base, task) for member in plan for task in member.tasks}
        width = max(len(str(folder)) for folder in folders)
        for folder, changed in folders.items():
            text = ", ".join(f"{name} {value}" for name, value in changed.items()) or "as the base"
            print(f"{folder!s:<{width}}  {text}")
        print(f"{len(folders)} runs; nothing was run")
        return {str(folder): changed for folder, changed in folders.items()}

    def train(self, plan: list[MemberRun], fabric: Fabric) -> dict[tuple[str, int], str]:
        """Run every task of the plan once; return the errors of members that failed, which do not end the study."""
        failed: dict[tuple[str, int], str] = {}
        done: set[Path] = set()
        for number, member in enumerate(plan, 1):
            fabric.print(f"\n[{number}/{len(plan)}] {member.label}, seed {member.seed}")
            try:
                run_chain(member.tasks, done)
            except (Error, DivergedError) as error:
                failed[member.label, member.seed] = str(error)
                fabric.print(f"{member.label}, seed {member.seed}: {error}")
        return failed

    def outcome(self, member: MemberRun, ablation: Ablation, images: int, failed: dict) -> Outcome:
        """Return the result of a member; an evaluation that fails does not end the study."""
        error, figures = failed.get((member.label, member.seed)), {}
        try:
            figures = {} if error else self.figures(member, ablation, images)
        except Error as raised:
            error = str(raised)
            print(f"{member.label}, seed {member.seed}: {error}")
        return Outcome(*member, figures, error)

    def figures(self, member: MemberRun, ablation: Ablation, images: int) -> dict[str, dict[str, Any]]:
        """Evaluate a finished member; return its results by measure."""
        last = member.tasks[-1]
        if not isinstance(last, Pretrain):
            rows = json.loads((last.folder / "result.json").read_text(encoding="utf-8"))["results"]
            return {"classifier": next(r for r in rows if r["metric"] == "top1" and r["name"] != "teacher")}
        results = {}
        for layer in ablation.layers if last.head_layers else ("h",):
            for name in self.measure:
                file = last.folder / f"{name}{'' if layer == 'h' else f'-{layer}'}.json"
                settings = {
                    "run": last.folder,
                    "data": self.data,
                    "layer": layer,
                    "baselines": False,
                    "out": file,
                    "machine": self.base.machine,
                }
                task = Linear(**settings) if name == "linear" else Knn(**settings, k=min(K, images))
                results[f"{name} {layer}"] = measure_once(task)
        return results


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


def measure_once(task: Linear | Knn) -> dict[str, Any]:
    """Return the result of an evaluation, from its file if these weights have been evaluated with these settings."""
    with contextlib.suppress(RunError, OSError):  # there is none, or it is damaged
        content, settings = read_results(task.out), plain(task)
        row, before = next(iter(content["results"]), {}), content.get("settings", {})
        is_same = all(before.get(name) == settings[name] for name in settings.keys() - ELSEWHERE)
        if is_same and row.get("weights") == provenance(task.run)["weights"]:
            return row
    return task()["results"][0]
