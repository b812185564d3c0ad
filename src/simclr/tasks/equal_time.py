"""Epochs of runs that are to take the same time."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from simclr.errors import RunError
from simclr.runs.files import write_atomically
from simclr.runs.reading import read_bytes
from simclr.runs.recipe import OF_RUN, plain
from simclr.tasks.estimate import Rehearsed, rehearse
from simclr.tasks.pretrain import Pretrain

FILE = "epochs.json"
LENGTH = ("epochs", "warmup_epochs")
SHORTEST = 0.25  # epochs
MEASURED = 4.0  # seconds of steps of each network
_MOST_BYTES = 16 << 20


def epochs_within(seconds: float, tasks: Mapping[str, Pretrain], folder: Path) -> dict[str, dict[str, float]]:
    """Return for each task, by name, the epochs that fit in `seconds` of training steps, and the warm-up in proportion.

    The steps of each are timed with one run at a time. The epochs are kept in a file of `folder`, so that the same
    command continues what it began; those of other settings are measured anew.
    """
    file = folder / FILE
    kept = read_epochs(file) if file.is_file() else {}
    keys = {name: f"{name}, {seconds:g} s, {_digest(task)}" for name, task in tasks.items()}
    for name, task in tasks.items():
        key = keys[name]
        if key not in kept:
            new = replace(task, out=folder / "measured")  # a finished run would need no time
            needs = rehearse([Rehearsed(new, new.sources()[0], Path())], task.machine, MEASURED)[str(new.folder)]
            kept[key] = float(f"{max(task.epochs * seconds / needs.seconds, SHORTEST):.3g}")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(kept, indent=2) + "\n")
    epochs = {name: kept[key] for name, key in keys.items()}
    warmup = {name: float(f"{task.warmup_epochs * epochs[name] / task.epochs:.3g}") for name, task in tasks.items()}
    return {name: dict(zip(LENGTH, (epochs[name], warmup[name]), strict=True)) for name in tasks}


def _digest(task: Pretrain) -> str:
    """Return a hash of the settings of a task that a recipe has."""
    settings = {name: value for name, value in plain(task).items() if name not in OF_RUN}
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()


def read_epochs(file: Path) -> dict[str, float]:
    """Return the epochs in a file, by name; raise RunError if there are none."""
    try:
        kept = json.loads(read_bytes(file, _MOST_BYTES))
        if not (isinstance(kept, dict) and all(type(value) in (int, float) for value in kept.values())):
            raise ValueError
    except ValueError:
        raise RunError(file, "cannot be read", "Delete it to measure the epochs again") from None
    return kept
