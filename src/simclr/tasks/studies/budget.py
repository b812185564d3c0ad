"""Part of a study that fits into a given time: fewer epochs, then fewer seeds, then fewer members."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from simclr.data import Source
from simclr.errors import RunError, SettingError
from simclr.report.resources import rough_duration
from simclr.report.words import plural
from simclr.runs.files import write_atomically
from simclr.runs.recipe import plain
from simclr.settings import seconds_of
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
    dispensable: Sequence[str],
) -> Scale:
    """Return the largest part of a study that takes at most `limit` seconds, or its smallest part, which takes longer.

    `runs` holds for each member the durations of its runs with one seed by their folders; members share those of the
    same folder. The epochs are reduced to the fraction `shortest` of them, then the seeds to one, then the members: the
    `dispensable` ones first, each time the last of them. What is then left of the time is given to the epochs.
    """
    leaving = [label for label in reversed(runs) if label in dispensable]
    leaving += [label for label in reversed(runs) if label not in dispensable]
    options = [(count, list(runs)) for count in range(seeds, 0, -1)]
    options += [(1, [label for label in runs if label not in leaving[:k]]) for k in range(1, len(runs))]
    for count, kept in options:
        durations = {folder: d for label in kept for folder, d in runs[label].items()}.values()
        growing, fixed = (count * sum(parts) for parts in zip(*durations, strict=True))
        fraction = min(1.0, max(shortest, (limit - fixed) / growing)) if growing else 1.0
        scale = Scale(fraction, count, kept, fraction * growing + fixed)
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
    labels = list(ablation.members(base))
    shorter = with_epochs(base, scale.epochs)
    own = dict(zip(labels, ablation.members(shorter), strict=True))  # labels may hold the epochs
    part = replace(study, base=shorter, seeds=scale.seeds, only=tuple(own[label] for label in scale.members))
    described = {
        "budget": study.budget, "seconds": scale.seconds, "epochs": [shorter.epochs, base.epochs],
        "seeds": [scale.seeds, study.seeds],
        "left_out": [label for label in study.only or labels if label not in scale.members],
    }  # fmt: skip
    print(describe(described))
    return part, described


def with_epochs(base: Pretrain, fraction: float | int) -> Pretrain:
    """Return a task with a fraction of its epochs, rounded to three digits, and of its warm-up."""
    if fraction == 1:
        return base
    return replace(base, epochs=float(f"{fraction * base.epochs:.3g}"), warmup_epochs=fraction * base.warmup_epochs)


def measure(study: "Study", ablation: Ablation, train: Source) -> Scale:
    """Return the part of a study that fits into its budget, from a measured time of a step of each of its runs; an
    evaluation is taken to last as long as an epoch. Raises SettingError if no part fits."""
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
    runs: dict[str, dict[Any, Duration]] = {}
    for member in plan:
        runs[member.label] = {}
        for task, other in zip(member.tasks, shorter[labels.index(member.label)].tasks, strict=True):
            seconds = needs[str(task.folder)].seconds or 0.0
            grows, evaluated = task.epochs != other.epochs, seconds / task.epochs if isinstance(task, Pretrain) else 0.0
            runs[member.label][task.folder] = Duration(seconds * grows, seconds * (not grows) + evaluated)
    own = own_labels(ablation, labels)
    claimed = {own[label] for claim in ablation.claims for label in (*claim.members, *(claim.than or ()))}
    dispensable = [label for label in runs if label not in claimed]
    lanes = min(study.parallel, torch.cuda.device_count()) if study.base.machine.kind == "cuda" else 1
    limit = seconds_of("budget", study.budget) * lanes
    scale = fit_into(limit, runs, study.seeds, shortest, dispensable)
    if scale.seconds > limit * (1 + 1e-9):
        needed = f"at least {rough_duration(scale.seconds / lanes)}, the duration of its smallest part"
        raise SettingError("budget", needed, study.budget)
    return scale._replace(seconds=scale.seconds / lanes)


def describe(part: Mapping[str, Any]) -> str:
    """Return what a budget leaves out as text."""
    (epochs, all_epochs), (seeds, all_seeds) = part["epochs"], part["seeds"]
    cuts = [f"{epochs:g} of {all_epochs:g} epochs"] if epochs != all_epochs else []
    cuts += [f"{seeds} of {plural(all_seeds, 'seed')}"] if seeds != all_seeds else []
    cuts += [f"without {', '.join(part['left_out'])}"] if part["left_out"] else []
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
