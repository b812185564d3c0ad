"""Settings of the members of a study, each chosen by a search of its own with the same number of runs."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from simclr.errors import RunError
from simclr.tasks.combinations import text_of
from simclr.tasks.studies.ablation import Ablation
from simclr.tasks.sweep import Sweep, with_settings

if TYPE_CHECKING:
    from simclr.tasks.study import Study


def tuned(study: "Study", ablation: Ablation) -> Ablation:
    """Return the study with the best settings of each of its members, which are searched on held-out training images
    first."""
    members = ablation.members(study.base)
    for label in study.only or members:
        if label in ablation.tuning:
            first, *others = members[label]
            sweep = search_of(study, ablation, label)
            print(f"\n{label}: search of {', '.join(sweep.over)}")
            best = sweep()["combinations"][0]
            if best["mean"] is None:
                raise RunError(sweep.folder, f"every run of the search for {label} failed")
            members[label] = (with_settings(first, best["settings"]), *others)
    return replace(ablation, members=lambda base: members if base == study.base else ablation.members(base))


def count_searches(study: "Study", ablation: Ablation) -> int:
    """Return the number of runs of the searches for all members."""
    members = ablation.members(study.base)
    values = [ablation.tuning[label](members[label][0]) for label in study.only or members if label in ablation.tuning]
    return sum(math.prod(map(len, lists.values())) for lists in values)


def search_of(study: "Study", ablation: Ablation, label: str) -> Sweep:
    """Return the search of the settings of a member."""
    first = ablation.members(study.base)[label][0]
    over = tuple(f"{name}={','.join(map(text_of, values))}" for name, values in ablation.tuning[label](first).items())
    base = replace(first, out=study.folder / "tuning" / label, data=study.data, machine=study.base.machine)
    return Sweep(base=base, data=study.data, over=over, metric="linear", parallel=study.parallel)
