"""What the figures of a run warn of: a sentence each, with the number behind it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from simclr.optim import warmup_steps
from simclr.report.comparison import alike
from simclr.report.record import Folder, Measurement
from simclr.report.words import number, several, term

COLLAPSED = 0.1  # standard deviation of z below which embeddings are near a single point; isotropic ones have 1
FEW_DIMENSIONS = 0.02  # effective rank of h, as a share of the greatest possible, below which it says collapse
RANK_ROWS = 256  # images at most whose rank a line of the log gives
AT_CHANCE = 0.98  # of the loss of chance, from which on a run has learned next to nothing
WAIT = 10.0  # percent of the time; `simclr bench` advises from there on too
BASELINES = ("raw pixels", "untrained encoder")
TRIED = ("knn", "linear", "finetune", "distill")
UNCHOSEN = ("run", "teacher", "data", "out", "fresh", "seed", "machine", "baselines", "log_every", "save_every")
OURS = ("pretrained encoder", "its own classifier", "linear classifier on h")


def concerns(folder: Folder) -> list[str]:
    """The warnings that one run's folder gives cause for."""
    return [
        sentence
        for find in (_unfinished, _lost, _collapsed, _at_chance, _waited, _bad_images, _torn, _seen, _other_weights,
                     _codes, _not_better, _best_of_many)
        for sentence in find(folder)
    ]  # fmt: skip


def concerns_together(folders: Sequence[Folder]) -> list[str]:
    """The warnings that comparing runs gives cause for."""
    found = []
    codes = sorted({code for folder in folders for code in codes_of(folder)})
    if len(codes) > 1:
        found.append(f"The runs come from {len(codes)} versions of the code ({', '.join(codes)}): "
                     "differences may be the code's.")  # fmt: skip
    starts = {folder.starts[-1].get("torch") for folder in folders if folder.starts} - {None}
    if len(starts) > 1:
        found.append(f"The runs come from {len(starts)} versions of torch ({', '.join(sorted(starts))}).")
    images = {folder.data.get("fingerprint") for folder in folders} - {None}
    if len(images) > 1:
        found.append(f"The runs learned from {len(images)} different sets of images.")
    measured = [folder for folder in folders if any(_on_test(m.rows) for m in _current(folder))]
    tried = len(alike(measured))
    if tried > 2:
        found.append(f"{tried} settings are measured on test images: the best of them would be chosen there, and its "
                     "figure too good.")  # fmt: skip
    return found


def codes_of(folder: Folder) -> list[str]:
    """Versions of the code, as hashes, that trained and measured a run."""
    starts = [str(start["code"]) for start in folder.starts if start.get("code")]
    rows = [str(row["code"]) for m in folder.measurements if not m.older for row in m.rows if row.get("code")]
    return list(dict.fromkeys(starts + rows))


def _unfinished(folder: Folder) -> Iterator[str]:
    if not folder.finished:
        share = f" of {folder.steps:,} ({100 * folder.step / folder.steps:.0f} %)" if folder.steps else ""
        yield f"The run is not finished: its log ends at step {folder.step:,}{share}; the same command goes on with it."


def _lost(folder: Folder) -> Iterator[str]:
    bad = [(step, value) for step, value in folder.series("loss") if not math.isfinite(value)]
    if bad:
        step, value = bad[0]
        yield f"The loss was no number in {several(len(bad), 'line')} of the log, first {value} at step {step:,}."


def _collapsed(folder: Folder) -> Iterator[str]:
    for name in ("embedding_std", "health_embedding_std"):
        value = folder.last(name)
        if value is not None and value < COLLAPSED:
            yield (f"The embeddings have collapsed: their {term(name).label} is {value:.2g} at the end, "
                   "where 1 is isotropic and 0 a single point.")  # fmt: skip
            return
    rank, features = folder.last("rankme"), folder.card.get("features")
    own = (folder.batch or 0) // folder.processes
    most = min(x for x in (RANK_ROWS, own, features) if x) if own and rank is not None else 0
    if most and rank < max(FEW_DIMENSIONS * most, 1.5):
        yield f"The features have collapsed to few dimensions: their effective rank is {rank:.2g} of at most {most}."
    idle = folder.last("health_idle_dimensions")
    if idle is not None and idle > 0.5:
        yield f"{100 * idle:.0f} % of the embedding's dimensions have next to no deviation: it has collapsed to a few."


def _at_chance(folder: Folder) -> Iterator[str]:
    loss, epochs = folder.last("loss"), folder.recipe.get("warmup_epochs", 0)
    if loss is None or folder.chance is None:
        return
    warmup = warmup_steps(folder.images, folder.batch, epochs) if folder.images else 0
    share = loss / folder.chance
    if share > AT_CHANCE and (folder.step > warmup or folder.result is not None):
        yield (f"The loss is {share:.3f} of chance, {folder.chance_form} = {folder.chance:.3f} nats, at the end: "
               "the network tells views of one image from others hardly better than by guessing.")  # fmt: skip


def _waited(folder: Folder) -> Iterator[str]:
    waited = total = 0.0
    for lines in folder.segments:
        before = None
        for line in lines:
            if "data_wait_percent" in line and "seconds" in line:
                if before is not None:  # the first line of a start holds the start of its workers
                    waited += line["data_wait_percent"] * (line["seconds"] - before)
                    total += line["seconds"] - before
                before = line["seconds"]
    if total and waited / total > WAIT:
        yield (f"The network waited for images {waited / total:.0f} % of the time; "
               "simclr bench says what to change.")  # fmt: skip


def _bad_images(folder: Folder) -> Iterator[str]:
    count = max(len(folder.bad), (folder.result or {}).get("bad", 0))
    if count:
        share = f" of {folder.images:,} ({100 * count / folder.images:.2g} %)" if folder.images else ""
        verb = "was" if count == 1 else "were"
        yield f"{several(count, 'image')}{share} could not be read and {verb} replaced; bad_files.csv lists them."


def _torn(folder: Folder) -> Iterator[str]:
    if folder.torn:
        left = "is" if folder.torn == 1 else "are"
        yield f"{several(folder.torn, 'line')} of metrics.jsonl could not be read and {left} left out."
    for name in folder.unreadable:
        yield f"{name} could not be read and is left out."


def _seen(folder: Folder) -> Iterator[str]:
    seen, chosen = [], []
    for m in _current(folder):
        splits = " ".join(str(row.get("split", "")) for row in m.rows)
        if "has seen" in splits:
            seen.append(m)
        if "held out" in splits and "test" not in splits:
            chosen.append(m)
    if seen:
        yield f"{_files(seen)}, measured on images that pretraining on the same data has seen."
    if chosen:
        yield f"{_files(chosen)}, measured on training images held out to choose settings by: no test figures."


def _other_weights(folder: Folder) -> Iterator[str]:
    for m in _current(folder):
        here = "/" not in m.file and m.file != "result.json"
        measured = {str(row["weights"]) for row in m.rows if row.get("weights")}
        if here and measured and folder.weights and folder.weights not in measured:
            yield (f"{m.file} measured other weights ({', '.join(sorted(measured))}) than lie here "
                   f"({folder.weights}); measure again.")  # fmt: skip


def _codes(folder: Folder) -> Iterator[str]:
    codes = codes_of(folder)
    if len(codes) > 1:
        yield f"Training and measurements come from {len(codes)} versions of the code: {', '.join(codes)}."


def _not_better(folder: Folder) -> Iterator[str]:
    for m in _current(folder):
        for row in m.rows:
            if row.get("name") != "pretrained encoder" or not row.get("interval"):
                continue
            key = row["metric"], row.get("protocol")
            for other in m.rows:
                same = (other["metric"], other.get("protocol")) == key and other.get("name") in BASELINES
                if same and other.get("layer") in ("pixels", row.get("layer")) and other["value"] >= row["interval"][0]:
                    yield (f"{m.file}: {row['layer']} of the pretrained encoder has "
                           f"{number(row['metric'], row['value'])} {term(row['metric']).label}, not clearly more than "
                           f"{number(row['metric'], other['value'])} of {_the(other['name'])}.")  # fmt: skip


def _best_of_many(folder: Folder) -> Iterator[str]:
    tried: dict[tuple, dict[str, float]] = defaultdict(dict)
    for m in folder.measurements:
        chosen = {k: v for k, v in m.settings.items() if k not in UNCHOSEN}
        for row in m.rows:
            ours = row.get("name") in OURS or m.task in ("finetune", "distill")
            if ours and row["metric"] == "top1" and m.task in TRIED and _on_test([row]):
                what = row.get("protocol") if m.task in ("finetune", "distill") else m.task
                tried[what, m.data][repr((chosen, row.get("protocol"), row.get("layer")))] = row["value"]
    for (what, data), figures in tried.items():
        if len(figures) > 1:
            low, high = (number("top1", end(figures.values())) for end in (min, max))
            yield (f"{what}: the test part of {data} was read under {len(figures)} settings, {low} to {high}; the best "
                   "of them would be chosen on test images, and too good.")  # fmt: skip


def _current(folder: Folder) -> list[Measurement]:
    return [m for m in folder.measurements if not m.older]


def _files(measurements: list[Measurement]) -> str:
    """Files and the images each is measured on; of many the first three."""
    named = [f"{m.file} (n = {max(row.get('n', 0) for row in m.rows):,})" for m in measurements[:3]]
    return ", ".join(named) + (f" and {len(measurements) - 3} others" if len(measurements) > 3 else "")


def _on_test(rows: list[dict[str, Any]]) -> bool:
    return any("test" in str(row.get("split", "")) and row.get("interval") for row in rows)


def _the(name: str) -> str:
    return name if name == "raw pixels" else f"the {name}"
