"""Part of a study that fits into a given time: fewer epochs, then fewer seeds, then fewer members."""

import contextlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from simclr.data import Source
from simclr.errors import RunError, SettingError
from simclr.evaluation.online import KNN_IMAGES
from simclr.report.resources import rough_duration
from simclr.report.words import plural
from simclr.runs.environment import cores
from simclr.runs.files import write_atomically
from simclr.runs.recipe import plain
from simclr.settings import seconds_of
from simclr.tasks.cells import run_cells
from simclr.tasks.estimate import Rehearsed, rehearse
from simclr.tasks.finetune import FineTune
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies.ablation import Ablation
from simclr.tasks.studies.claims import own_labels

if TYPE_CHECKING:
    from simclr.tasks.study import Study

FILE = "budget.json"
SHORTEST = 0.1  # fraction of the epochs below which a study is not reduced; at least one epoch


class Duration(NamedTuple):
    """Seconds of a run: those in proportion to the epochs of the study, and the others."""

    growing: float
    fixed: float = 0.0


class Scale(NamedTuple):
    """Part of a study."""

    epochs: float
    """fraction of the epochs"""
    seeds: int
    members: list[str]
    """labels of the members"""
    seconds: float


def fit_into(
    limit: float | int,
    runs: Mapping[str, Mapping[Any, Duration]],
    seeds: int,
    shortest: float | int,
    contrasts: Sequence[AbstractSet[str]],
) -> Scale:
    """Return the largest part of a study that takes at most `limit` seconds, or its smallest part, which takes longer.

    `runs` holds for each member the durations of its runs with one seed by their folders; members share those of the
    same folder. `contrasts` are the members that each claim compares. The epochs are reduced to the fraction `shortest`
    of them, then the seeds to one, then the members: those of no claim, each time the last of them; then all but the
    members of as many claims as fit, of equally many the first; if no claim fits, each time the last member. What is
    then left of the time is given to the epochs.
    """
    labels, compared = list(runs), frozenset().union(*contrasts)
    spare = [label for label in reversed(labels) if label not in compared]
    options = [(count, set(labels)) for count in range(seeds, 0, -1)]
    options += [(1, set(labels).difference(spare[:k])) for k in range(1, len(spare) + 1)]
    options += [(1, set().union(*some)) for count in range(len(contrasts) - 1, 0, -1)
                for some in combinations(contrasts, count)]  # fmt: skip
    options += [(1, set(labels[:k])) for k in range(len(labels) - 1, 0, -1)]
    for count, kept in options:
        if not kept:
            continue
        durations = {folder: d for label in kept for folder, d in runs[label].items()}.values()
        growing, fixed = count * sum(d.growing for d in durations), count * sum(d.fixed for d in durations)
        fraction = min(1.0, max(shortest, (limit - fixed) / growing)) if growing else 1.0
        scale = Scale(fraction, count, [label for label in labels if label in kept], fraction * growing + fixed)
        if scale.seconds <= limit * (1 + 1e-9):
            break
    return scale


def reduce_study(study: "Study", ablation: Ablation, train: Source) -> tuple["Study", dict[str, Any]]:
    """Return the part of a study that fits into its budget, and a description of it. A study that was interrupted keeps
    the part that it began with."""
    if study.base.machine.processes > 1:
        raise SettingError("budget", "full if a run has several processes", study.budget)
    base = study.base
    settings = {name: value for name, value in plain(base).items() if name not in ("machine", "out", "fresh", "data")}
    request = {"budget": study.budget, "seeds": study.seeds, "only": list(study.only), "base": settings}
    path = study.folder / FILE
    if path.is_file() and not base.fresh:
        scale = _saved(path, json.loads(json.dumps(request)))
    else:
        scale = measure(study, ablation, train)
        if not study.dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"request": request, "part": scale._asdict()}, indent=2) + "\n")
    labels, contrasts = list(ablation.members(base)), contrasts_of(study, ablation)
    shorter = with_epochs(base, scale.epochs)
    own = dict(zip(labels, ablation.members(shorter), strict=True))  # labels may hold the epochs
    part = replace(study, base=shorter, seeds=scale.seeds, only=tuple(own[label] for label in scale.members))
    described = {
        "budget": study.budget, "seconds": scale.seconds, "epochs": [shorter.epochs, base.epochs],
        "seeds": [scale.seeds, study.seeds],
        "left_out": [label for label in study.only or labels if label not in scale.members],
        "claims": [sum(contrast <= set(scale.members) for contrast in contrasts), len(contrasts)],
    }  # fmt: skip
    print(describe(described))
    return part, described


def with_epochs(base: Pretrain, fraction: float | int) -> Pretrain:
    """Return a task with a fraction of its epochs, rounded to three digits, and of its warm-up."""
    if fraction == 1:
        return base
    return replace(base, epochs=float(f"{fraction * base.epochs:.3g}"), warmup_epochs=fraction * base.warmup_epochs)


def contrasts_of(study: "Study", ablation: Ablation) -> list[frozenset[str]]:
    """Return the members that each claim compares, of the claims whose members are all in a study."""
    labels = list(ablation.members(study.base))
    own = own_labels(ablation, labels)
    contrasts = [frozenset(own[label] for label in (*claim.members, *(claim.than or ()))) for claim in ablation.claims]
    return [contrast for contrast in contrasts if contrast <= set(study.only or labels)]


def measure(study: "Study", ablation: Ablation, train: Source) -> Scale:
    """Return the part of a study that fits into its budget, less the time of the measurements: a step of each of its
    runs, and one run of a step with its evaluations. Raises SettingError if no part fits."""
    began = time.monotonic()
    shortest = min(1.0, max(SHORTEST, 1 / study.base.epochs))
    once, less = replace(study, seeds=1), replace(study, seeds=1, base=with_epochs(study.base, shortest), only=())
    labels, shorter = list(ablation.members(study.base)), list(less.plan(ablation))
    source, plan = study.base.sources()[0], list(once.plan(ablation))
    chain = {
        task.folder: Rehearsed(task, study.base.scaled(task.subset(train)[0]) if isinstance(task, FineTune) else source,
                               before.folder if before else task.folder)
        for member in plan for before, task in zip((None, *member.tasks), member.tasks, strict=False)
    }  # fmt: skip
    needs = rehearse(list(chain.values()), study.base.machine, study.seconds)
    left = {folder: seconds for folder in chain if (seconds := needs[str(folder)].seconds) is not None}
    alone = [member for member in plan if len(member.tasks) == 1] or plan  # whose encoder is evaluated
    epochs = {member.label: left[member.tasks[0].folder] / member.tasks[0].epochs for member in alone
              if member.tasks[0].folder in left}  # fmt: skip
    on_gpus = study.base.machine.kind == "cuda"
    lanes = min(study.parallel, torch.cuda.device_count()) if on_gpus else 1
    at_once = (
        study.parallel if on_gpus else min(study.parallel, cores())
    )  # processes beyond the cores wait for each other

    def part(fixed: float) -> Scale:
        """Return the part that fits if a run of the fastest network takes `fixed` seconds beside its steps."""
        runs: dict[str, dict[Any, Duration]] = {}
        for member in plan:
            runs[member.label] = {}
            for task, other in zip(member.tasks, shorter[labels.index(member.label)].tasks, strict=True):
                if task.folder not in left:
                    continue
                seconds, beside = left[task.folder], fixed
                if isinstance(task, Pretrain):
                    epoch = seconds / task.epochs
                    beside += max(0.0, epoch - min(epochs.values(), default=epoch))
                    seconds += epoch * checks(task, len(source))
                grows = task.epochs != other.epochs
                runs[member.label][task.folder] = Duration(seconds * grows, seconds * (not grows) + beside)
        spent = time.monotonic() - began
        limit = max(0.0, seconds_of("budget", study.budget) - spent)
        scale = fit_into(limit * lanes, runs, study.seeds, shortest, contrasts_of(study, ablation))
        scale = scale._replace(seconds=scale.seconds / lanes)
        if scale.seconds > limit * (1 + 1e-9):
            needed = f"at least {rough_duration(scale.seconds + spent)}, the duration of its smallest part"
            raise SettingError("budget", needed, study.budget)
        return scale._replace(seconds=scale.seconds + spent)

    scale = part(0.0)  # a study that does not fit for its steps alone needs no trial
    if not epochs:
        return scale
    fastest = min(epochs, key=epochs.__getitem__)
    return part(trial(study, ablation, fastest, train, len(source)) * lanes / at_once)


def checks(task: Pretrain, images: int) -> float:
    """Return the time of the checks of a run in epochs: each is a pass forward over at most `KNN_IMAGES` images, which
    takes less than a quarter of the time of their two views forward and backward."""
    return task.epochs / task.knn_every * min(1.0, KNN_IMAGES / images) / 4 if task.knn_every else 0.0


def trial(study: "Study", ablation: Ablation, label: str, train: Source, images: int) -> float:
    """Return the seconds that a run of one step takes, its start, its evaluations and its pages; `images` is the number
    of training images with and without labels."""
    output = io.StringIO()
    with (
        TemporaryDirectory() as folder,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        base = replace(study.base, out=Path(folder) / "trial", fresh=False, tracker=None)
        short = replace(study, base=base, seeds=1, only=())
        member = list(short.plan(ablation))[list(ablation.members(base)).index(label)]
        first, *others = member.tasks
        assert isinstance(first, Pretrain)
        first = replace(first, epochs=first.batch / (2 * images), warmup_epochs=0, extend=())
        cell, *_ = short.cells([member._replace(tasks=(first, *others))], ablation, len(train))
        start = time.monotonic()
        failed = run_cells([cell], base.machine.launch(), study.parallel)
        seconds = time.monotonic() - start
    if failed:
        raise RunError(study.folder, f"a run of one step, which a budget measures, failed: {failed[cell.folder]}")
    return seconds


def describe(part: Mapping[str, Any]) -> str:
    """Return what a budget leaves out as text."""
    (epochs, all_epochs), (seeds, all_seeds) = part["epochs"], part["seeds"]
    cuts = [f"{epochs:g} of {all_epochs:g} epochs"] if epochs != all_epochs else []
    cuts += [f"{seeds} of {plural(all_seeds, 'seed')}"] if seeds != all_seeds else []
    cuts += [f"without {', '.join(part['left_out'])}"] if part["left_out"] else []
    kept, claims = part["claims"]
    if claims and not kept:
        cuts += ["no claim can be judged within this budget"]
    elif kept and seeds == 1 < all_seeds:
        cuts += ["one seed decides no claim"]
    return f"budget {part['budget']}: about {rough_duration(part['seconds'])}, {'; '.join(cuts) or 'the whole study'}"


def _saved(path: Any, request: dict[str, Any]) -> Scale:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["request"] == request:
            return Scale(**content["part"])
    except (ValueError, KeyError, TypeError):
        raise RunError(path, "is damaged", "Delete it to measure the budget again") from None
    remedy = "Repeat its settings to continue, choose another --out, or start over with --fresh"
    raise RunError(path.parent, "holds a study of another budget or other settings", remedy)
