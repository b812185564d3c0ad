"""Several runs side by side: what came of them, which settings differ, and how sure their differences are."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simclr.evaluation.intervals import SAMPLES, bootstrap_interval, permutation_test, seed_interval
from simclr.report.record import Folder
from simclr.report.words import duration, interval, number, points, setting, term
from simclr.runs.run import WHERE

OWN = ("pretrained encoder", "student", "its own classifier", "linear classifier on h")
NO_SETTINGS = ("out", "fresh")


class Key(NamedTuple):
    """What makes two figures of different runs comparable."""

    task: str
    data: str
    protocol: str
    layer: str
    name: str
    metric: str


def figures(folder: Folder) -> dict[Key, dict[str, Any]]:
    """What was measured of a run itself, not of what it is compared with; the latest of each."""
    found: dict[Key, dict[str, Any]] = {}
    for m in folder.measurements:
        for row in m.rows:
            name = str(row.get("name", ""))
            if m.file == "result.json":  # of training with labels or a teacher: its own figure, however it was trained
                if name != "teacher":
                    found.setdefault(Key("", m.data, "own classifier", "", "", row["metric"]), row)
            elif name in OWN or m.task not in ("knn", "linear", "health"):
                name = "" if name in OWN else name
                key = Key(m.task, m.data, str(row.get("protocol", "")), str(row.get("layer", "")), name, row["metric"])
                found.setdefault(key, row)
    return found


def title(key: Key) -> str:
    """A figure in words."""
    parts = (key.name, key.protocol, "" if key.layer in ("", "h") else key.layer, f"on {key.data}" if key.data else "")
    return f"{term(key.metric).label}: {', '.join(part for part in parts if part)}"


def overview(folders: Sequence[Folder]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of runs: how far each came and every figure at least two of them have."""
    logged = [name for name in ("loss", "contrastive_top1", "knn_top1", "train_top1", "agreement", "embedding_std",
                                "rankme") if any(f.last(name) is not None for f in folders)]  # fmt: skip
    rows = [
        ["task", *(f.kind for f in folders)],
        ["state", *(_state(f) for f in folders)],
        ["images", *(f"{f.images:,}" if f.images else "–" for f in folders)],
        ["training time", *(duration(f.seconds) if f.lines else "–" for f in folders)],
    ]
    rows += [[f"{term(name).label}, last of the log", *(number(name, f.last(name)) for f in folders)]
             for name in logged]  # fmt: skip
    for key, found in _common(folders).items():
        cells = [found.get(f.path) for f in folders]
        rows.append([title(key), *(_cell(key.metric, row) for row in cells)])
    return ["", *names(folders)], rows


def names(folders: Sequence[Folder]) -> list[str]:
    """A name for each run: its folder's, with those above it where two have the same."""
    alone = [folder.name for folder in folders]
    return [
        folder.path.as_posix() if alone.count(name) > 1 else name for name, folder in zip(alone, folders, strict=True)
    ]


def differing(folders: Sequence[Folder]) -> list[list[str]]:
    """Settings that are not the same in all runs: name, then the value in each."""
    recipes = [folder.settings for folder in folders]
    rows = []
    for name in dict.fromkeys(name for recipe in recipes for name in recipe if name not in NO_SETTINGS):
        cells = [setting(recipe[name]) if name in recipe else "–" for recipe in recipes]
        if len(set(cells)) > 1:
            rows.append([name, *cells])
    prints = [str(folder.data.get("fingerprint", "–")) for folder in folders]
    if len(set(prints)) > 1:
        rows.append(["fingerprint of the images", *prints])
    return rows


def differences(folders: Sequence[Folder]) -> list[list[str]]:
    """Each figure of each later run against the first run's: both, the difference with its 95 % interval, and how
    probable so large a one is by chance, where both name the hits of the same test images."""
    called = names(folders)
    rows = []
    for key, found in _common(folders).items():
        first = found.get(folders[0].path)
        for folder, name in list(zip(folders, called, strict=True))[1:]:
            other = found.get(folder.path)
            if first is None or other is None:
                continue
            gap = other["value"] - first["value"]
            a, b = hits(other), hits(first)
            paired = a is not None and b is not None and other.get("answers") == first.get("answers")
            span = bootstrap_interval(a - b) if paired else None
            chance = f"{permutation_test(a, b):.2g}" if paired else ""
            how = f"paired, {len(a):,} images" if paired else "not paired: the files hold no hits of the same images"
            rows.append([title(key), name, points(key.metric, gap, span), chance, how if other.get("interval") else ""])
    return rows


DIFFERENCES = ["figure", "run", "difference, 95 % interval", "p", "how"]
DIFFERENCES_NOTE = (
    "Against the first run. The interval is of resampled test images; p is the probability that equally good networks "
    f"differ as much, by a permutation test of {SAMPLES:,} samples. Neither says what other training runs would show."
)


def hits(row: dict[str, Any]) -> np.ndarray | None:
    """1.0 where a test image was told right, (n,), as `simclr.measuring.Result` keeps it."""
    if not row.get("hits") or row["metric"] != "top1":
        return None
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row["hits"]), np.uint8))
    return bits[: row["n"]].astype(float) if len(bits) >= row["n"] else None


def over_seeds(folders: Sequence[Folder]) -> list[list[str]]:
    """Runs that differ in nothing but their seed: figure, runs, mean, deviation, and Student's interval of the mean."""
    rows = []
    for group in alike(folders):
        if len({folder.recipe.get("seed") for folder in group}) < len(group) or len(group) < 2:
            continue
        for key, found in _common(group).items():
            values = [row["value"] for row in found.values()]
            low, high = seed_interval(values)
            rows.append([title(key), ", ".join(folder.name for folder in group if folder.path in found),
                         number(key.metric, float(np.mean(values))), points(key.metric, np.std(values, ddof=1))[1:],
                         interval(key.metric, (low, high))])  # fmt: skip
    return rows


def alike(folders: Sequence[Folder]) -> list[list[Folder]]:
    """The runs in groups of those that differ in nothing but their seed and where they ran."""
    groups: dict[str, list[Folder]] = defaultdict(list)
    for folder in folders:
        chosen = {k: v for k, v in folder.settings.items() if k not in (*NO_SETTINGS, "seed") and k not in WHERE}
        groups[repr((folder.kind, sorted(chosen.items())))].append(folder)
    return list(groups.values())


def _common(folders: Sequence[Folder]) -> dict[Key, dict[Any, dict[str, Any]]]:
    """The figures that at least two runs have, of each run that has it."""
    found: dict[Key, dict[Any, dict[str, Any]]] = defaultdict(dict)
    for folder in folders:
        for key, row in figures(folder).items():
            found[key][folder.path] = row
    return {key: rows for key, rows in found.items() if len(rows) > 1}


def _cell(metric: str, row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{number(metric, row['value'])} {interval(metric, row.get('interval'))}".strip()


def _state(folder: Folder) -> str:
    if not folder.trained:
        return "not trained here"
    if folder.finished:
        return f"finished, {folder.steps or folder.step:,} steps"
    return f"unfinished, step {folder.step:,}" + (f" of {folder.steps:,}" if folder.steps else "")
