"""Comparison of several runs: their figures, the settings that differ, and the significance of differences."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simclr.evaluation.intervals import SAMPLES, difference_interval, permutation_test, seed_interval
from simclr.report.record import RunRecord
from simclr.report.words import duration, interval, number, points, setting_text, term, unit_label
from simclr.runs.run import WHERE

NO_SETTINGS = ("out", "fresh")


class Key(NamedTuple):
    """The fields by which figures of different runs are comparable."""

    command: str
    data: str
    protocol: str
    layer: str
    target: str
    metric: str


def figures(record: RunRecord) -> dict[Key, dict[str, Any]]:
    """Return the figures of a run's own model, not of what it is compared with; the latest of each."""
    latest: dict[Key, dict[str, Any]] = {}
    for m in record.measurements:
        for row in m.rows:
            if row["role"] != "model":
                continue
            if m.file == "result.json":  # of training with labels or a teacher: however it was trained
                key = Key("", m.data, "own classifier", "", "", row["metric"])
            else:
                protocol, layer, target = (str(row.get(name, "")) for name in ("protocol", "layer", "target"))
                key = Key(m.command, m.data_of(row), protocol, layer, target, row["metric"])
            latest.setdefault(key, row)
    return latest


def title(key: Key) -> str:
    """Return a figure as text."""
    layer, data = "" if key.layer in ("", "h") else key.layer, f"on {key.data}" if key.data else ""
    return f"{term(key.metric).label}: {', '.join(part for part in (key.target, key.protocol, layer, data) if part)}"


def overview(records: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of runs: their progress and every figure that at least two of them have."""
    logged = [name for name in ("loss", "contrastive_top1", "knn_top1", "train_top1", "agreement", "embedding_std",
                                "rankme") if any(f.last(name) is not None for f in records)]  # fmt: skip
    rows = [
        ["task", *(f.kind for f in records)],
        ["state", *(_state(f) for f in records)],
        ["images", *(f"{f.images:,}" if f.images else "–" for f in records)],
        ["training time", *(duration(f.seconds) if f.lines else "–" for f in records)],
    ]
    rows += [[f"{term(name).label}, last of the log", *(number(f.last(name), term(name).unit) for f in records)]
             for name in logged]  # fmt: skip
    for key, shared in _common(records).items():
        rows.append([title(key), *(_cell(shared.get(f.path)) for f in records)])
    return ["", *names(records)], rows


def names(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: that of its record, or its path where two have the same."""
    alone = [record.name for record in records]
    return [
        record.path.as_posix() if alone.count(name) > 1 else name for name, record in zip(alone, records, strict=True)
    ]


def differing(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return the settings that differ between runs: name, then the value in each."""
    recipes = [record.settings for record in records]
    rows = []
    for name in dict.fromkeys(name for recipe in recipes for name in recipe if name not in NO_SETTINGS):
        cells = [setting_text(recipe[name]) if name in recipe else "–" for recipe in recipes]
        if len(set(cells)) > 1:
            rows.append([name, *cells])
    prints = [str(record.data.get("fingerprint", "–")) for record in records]
    if len(set(prints)) > 1:
        rows.append(["fingerprint of the images", *prints])
    return rows


def differences(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return the difference of each figure of each later run to the first run, with its 95 % interval and p-value if
    both files hold the hits of the same test images."""
    labels = names(records)
    rows = []
    for key, shared in _common(records).items():
        first = shared.get(records[0].path)
        for record, name in list(zip(records, labels, strict=True))[1:]:
            other = shared.get(record.path)
            if first is None or other is None:
                continue
            gap = other["value"] - first["value"]
            a, b = hits(other), hits(first)
            paired = a is not None and b is not None and other.get("answers") == first.get("answers")
            span = difference_interval(a, b) if paired else None
            p = f"{permutation_test(a, b):.2g}" if paired else ""
            unit = unit_label(first["unit"])
            how = f"paired, {len(a):,} images" if paired else "not paired: the files hold no hits of the same images"
            rows.append([title(key), name, points(gap, unit, span), p, how if other.get("interval") else ""])
    return rows


DIFFERENCES = ["figure", "run", "difference, 95 % interval", "p", "comparison"]
DIFFERENCES_NOTE = (
    "Against the first run. The interval is a bootstrap over the test images; p is the p-value of a paired permutation "
    f"test with {SAMPLES:,} samples. Neither covers the variation between training runs."
)


def hits(row: dict[str, Any]) -> np.ndarray | None:
    """Return 1.0 for each test image that was classified correctly, else 0.0, (n,); None if the row does not say."""
    if not row.get("hits") or row["metric"] != "top1":
        return None
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row["hits"]), np.uint8))
    return bits[: row["n"]].astype(float) if len(bits) >= row["n"] else None


def over_seeds(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return the figures of runs that differ only in their seed: runs, mean, standard deviation, and Student's interval
    of the mean."""
    rows = []
    for group in group_by_settings(records):
        if len({record.recipe.get("seed") for record in group}) < len(group) or len(group) < 2:
            continue
        for key, shared in _common(group).items():
            values = [row["value"] for row in shared.values()]
            unit = unit_label(next(iter(shared.values()))["unit"])
            members = ", ".join(record.name for record in group if record.path in shared)
            mean, deviation = number(float(np.mean(values)), unit), points(np.std(values, ddof=1), unit)[1:]
            rows.append([title(key), members, mean, deviation, interval(seed_interval(values), unit)])
    return rows


def group_by_settings(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Return runs in groups of those that differ only in their seed and where they ran."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        chosen = {k: v for k, v in record.settings.items() if k not in (*NO_SETTINGS, "seed") and k not in WHERE}
        groups[repr((record.kind, sorted(chosen.items())))].append(record)
    return list(groups.values())


def _common(records: Sequence[RunRecord]) -> dict[Key, dict[Any, dict[str, Any]]]:
    """Return the figures that at least two runs have, by the path of each run that has them."""
    shared: dict[Key, dict[Any, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        for key, row in figures(record).items():
            shared[key][record.path] = row
    return {key: rows for key, rows in shared.items() if len(rows) > 1}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    unit = unit_label(row["unit"])
    return f"{number(row['value'], unit)} {interval(row.get('interval'), unit)}".strip()


def _state(record: RunRecord) -> str:
    if not record.trained:
        return "not trained here"
    if record.finished:
        return f"finished, {record.steps or record.step:,} steps"
    return f"unfinished, step {record.step:,}" + (f" of {record.steps:,}" if record.steps else "")
