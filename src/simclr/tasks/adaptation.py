"""Fine-tuning with few labels: the linear probe, settings that follow from their number, and a choice on halves of the
labelled images."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from simclr.data import Source, multilabel, open_source
from simclr.data.splits import holdout_mask
from simclr.errors import DivergedError, Interrupted, RunError
from simclr.evaluation.features import Features, extract
from simclr.evaluation.linear import LinearFit, fit_linear
from simclr.evaluation.metrics import correct
from simclr.evaluation.protocol import fit_device, with_labels
from simclr.models.pretrained import Encoder, load
from simclr.runs.files import printable
from simclr.runs.recipe import plain, saved_recipe
from simclr.runs.results import Result, require_run
from simclr.runs.run import Run
from simclr.training.fit import fit

if TYPE_CHECKING:
    from simclr.tasks.finetune import FineTune

FEW_LABELS = 10_000  # labelled images up to which the command line adapts to them and a probe is measured beside
NEUTRAL = {"run", "data", "out", "fresh", "fraction", "labelled", "measure", "seed", "log_every", "save_every",
           "max_bad"}  # fmt: skip
MOST_STEPS = 200  # of a run of the search
ERRORS = 2  # standard errors by which a candidate must be better than the probe: the best of four exceeds one by chance
SLOWER = 4  # the second learning rate of the search is the first divided by this


@dataclass(frozen=True)
class Choice:
    """What to train after the linear probe, chosen on held-out labelled images."""

    freeze: str
    lr: float
    trained: bool = True
    """false: the probe is the result"""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """what was tried: its gain over the probe, in accuracy on the held-out images, and the standard error"""


def settings_without_recipe(task: "FineTune", given: set[str]) -> dict[str, Any]:
    """Return the settings to use in place of the defaults of a run whose command line sets the names `given`.

    Without a recipe or a setting of the method they are those of the run in its folder if there is one, otherwise those
    for the number of labels, if that is at most `FEW_LABELS`.
    """
    if {name for name in given - NEUTRAL if not name.startswith("machine.")}:
        return {}
    saved = {} if task.fresh else saved_recipe(task.folder)
    if saved and saved.get("data") == plain(task)["data"]:
        settings = {f.name: saved[f.name] for f in fields(task) if f.name in saved and f.name not in NEUTRAL}
        settings.pop("machine", None)
        origin = f"settings of the run in {task.folder}"
    else:
        require_run(task.run)
        train = open_source(task.data, "train")
        if train.labels is None or not (train.labels >= 0).any():
            return {}  # which the run refuses
        labels = len(task.subset(with_labels(train), test=open_source(task.data, "test"))[0])
        if labels > FEW_LABELS:
            return {}
        settings = settings_for(labels, task.machine.processes)
        origin = f"settings for {labels:,} labels, from the linear probe (any flag of the method turns this off)"
    say(f"no recipe given: {origin}")
    return settings


def say(text: str) -> None:
    """Print a line to stderr on the first process."""
    if not int(os.environ.get("LOCAL_RANK") or 0):
        print(printable(text), file=sys.stderr)


def settings_for(labels: int, processes: int = 1) -> dict[str, Any]:
    """Return the settings of a fine-tuning with this number of labels by a number of processes."""
    batch = divisible(32 if labels <= 1000 else 64, processes)
    return {"adapt": True, "from_probe": True, "batch": batch, "min_steps": MOST_STEPS, "lr": 0.125,
            "crop_area": [0.2, 1.0]}  # fmt: skip


def divisible(batch: int, processes: int) -> int:
    """Return the largest multiple of the number of processes up to `batch`, or the number of processes."""
    return max(processes, batch - batch % processes)


def fit_probe(task: "FineTune", fabric: Fabric, start: Encoder, source: Source) -> LinearFit | None:
    """Return the linear probe on the labels of a source, fitted by the first process; None if none can be fitted."""
    probe = None
    features = _features(task, fabric, start, task.features_of(start), source) if fabric.is_global_zero else None
    if features and can_be_fitted(features.features):
        metric = "top1" if multilabel.targets(source).ndim == 1 else "map11"
        features = features.to(fit_device(features.features, task.machine))
        probe = fit_linear(features, source, seed=task.seed, metric=metric, few=True).cpu()
    if (probe := fabric.broadcast(probe)) is None and task.from_probe:
        problem = "has features that are all equal or not finite"
        raise RunError(task.run, problem, "A linear probe needs features that differ")
    return probe


def can_be_fitted(features: Float[Tensor, "n d"]) -> bool:
    """Return whether features differ between images and are finite."""
    return bool(features.isfinite().all()) and bool((features != features[0]).any())


def choose(task: "FineTune", fabric: Fabric, source: Source, steps: int, run: Run) -> Choice:
    """Return what to train after the linear probe, and the learning rate; a run that resumes keeps its choice.

    Each candidate is trained on one half of the labelled images and measured on the other, and the other way round, for
    a few steps; the best one again for half of the run's steps, if these are more, since with many labels a longer
    training decides. It is chosen if its accuracy is higher than that of the probe on the same halves by more than two
    standard errors, otherwise the probe is.
    """
    saved = (run.restore() or {}).get("circumstances", {}).get("chosen")
    if (saved := fabric.broadcast(saved)) is not None:
        return Choice(**saved)
    probe_alone = Choice("encoder", task.lr, trained=False)
    half = holdout_mask(source, 0.5, task.seed)
    if min(len(multilabel.present_classes(source.select(np.flatnonzero(m), source.split))) for m in (half, ~half)) < 2:
        return probe_alone
    network = load(task.run).network
    has_stages = hasattr(network, "stages") and hasattr(network, "layer3")
    tried = [
        replace(task, adapt=False, freeze=freeze, lr=lr)
        for freeze in (("block_group3", "nothing") if has_stages else ("nothing",))
        for lr in (task.lr / SLOWER, task.lr)
    ]
    length, longer = min(steps, MOST_STEPS), steps // 2
    again = f", the best again for {longer}" if longer > length else ""
    fabric.print(
        f"choice among the probe and {len(tried)} settings, each trained on two halves of the labels for {length} "
        f"steps{again}"
    )
    try:
        candidates = fabric.broadcast(list(_candidates(tried, fabric, source, half, length)))  # all train the same best
        best = max(candidates, key=lambda c: c["gain"])
        if longer > length:
            (best,) = _candidates([tried[candidates.index(best)]], fabric, source, half, longer)
            candidates.append(best)
    except Interrupted:
        raise Interrupted(
            "interrupted during the choice of what to train, which the same command begins again"
        ) from None
    better = best["gain"] > ERRORS * best["standard_error"]
    choice = Choice(best["freeze"], best["lr"]) if better else probe_alone
    kept = "the probe, without further training: no setting is better by two standard errors"
    fabric.print(f"chosen: {'freeze {freeze}, lr {lr:g}'.format(**best) if better else kept}")
    return fabric.broadcast(replace(choice, candidates=candidates))


def _candidates(
    tried: "list[FineTune]", fabric: Fabric, source: Source, half: np.ndarray, steps: int
) -> Iterator[dict[str, Any]]:
    """Yield for each candidate its settings, its mean gain over the probe on both halves, and the standard error."""
    folds = [list(_gains(tried, fabric, source, held_out, steps)) for held_out in (half, ~half)]
    for task, parts in zip(tried, zip(*folds, strict=True), strict=True):
        gain = torch.cat(parts)
        yield {"freeze": task.freeze, "lr": task.lr, "steps": steps, "gain": gain.mean().item(),
               "standard_error": (gain.std() / len(gain) ** 0.5).item()}  # fmt: skip


def _gains(
    tried: "list[FineTune]", fabric: Fabric, source: Source, held_out: np.ndarray, steps: int
) -> Iterator[Float[Tensor, " n"]]:
    """Yield for each candidate by how much it is better than the probe on each held-out image, both trained on the
    others."""
    rest, held = (source.select(np.flatnonzero(rows), source.split) for rows in (~held_out, held_out))
    task = tried[0]
    start = load(task.run)
    probe = fit_probe(task, fabric, start, rest)
    below = _features(task, fabric, start, task.features_of(start), held)
    targets = torch.from_numpy(multilabel.targets(held))[below.indices]
    base = correct(probe(below.features), targets)
    for candidate in tried:
        yield held_out_hits(candidate, fabric, rest, held, steps, probe) - base


def held_out_hits(
    task: "FineTune", fabric: Fabric, rest: Source, held: Source, steps: int, probe: LinearFit | None = None
) -> Float[Tensor, " n"]:
    """Train on `rest` without a trace on disk, and return `correct` of each image of `held`; zeros if it diverges."""
    start = load(task.run)
    batch = task.largest_batch(len(rest), fabric.world_size)
    parts = task.assemble(fabric, rest, start, batch, probe)
    diverged = False
    try:
        fit(Run(task.folder / "candidate"), fabric, parts, task.schedule(len(rest), batch, steps))
    except DivergedError:  # a learning rate that is too high is a result, not a failure
        diverged = True
    features = _features(task, fabric, start, parts.model, held)
    hits = correct(features.features, torch.from_numpy(multilabel.targets(held))[features.indices])
    return torch.zeros_like(hits) if diverged else hits


def _features(task: "FineTune", fabric: Fabric, start: Encoder, network: torch.nn.Module, held: Source) -> Features:
    workers = task.machine.worker_processes
    return extract(network.to(fabric.device), held, start.preprocess, device=fabric.device, workers=workers)


def beside_probe(result: Result) -> str:
    """Return the figure of the linear probe as text, with a warning if the fine-tuned network is below it."""
    linear = result.detail[f"linear_{result.metric}"]
    below = "; WARNING: the fine-tuned network is below it" if result.value < linear else ""
    where = f"layer {result.layer}, on the same labels"
    return f"linear probe of {where}: {result.metric} {100 * linear:.1f} %{below}"
