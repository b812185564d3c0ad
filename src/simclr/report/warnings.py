"""Findings about a run, from its log and its results: one set of rules for `simclr doctor RUN` and the report.

Each finding is a sentence with the number behind it and a level. Thresholds are rules of thumb, except for those that
follow from the loss.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from simclr.report.checks import Finding
from simclr.report.comparison import group_by_settings
from simclr.report.record import Measurement, RunRecord, is_number
from simclr.report.stages import above_uniform
from simclr.report.words import number, plural, term, unit_label

COLLAPSED = 0.1  # standard deviation of z below which embeddings are almost a single point; isotropic ones have 1
FEW_DIMENSIONS = 0.02  # effective rank of h as a fraction of its maximum, below which features have collapsed
RANK_ROWS = 256  # maximum number of images for the rank in a line of the log
AT_CHANCE = 0.98  # of the loss at chance level: a larger loss means that almost nothing was learned
RISES = 0.1  # of the loss at chance level: a rise above the lowest loss that is a fault, beside NOISE
NOISE = 4  # standard deviations of a mean of the log, since the lowest of many is lower by two by chance
EARLY = 200  # steps of an unfinished run within which a loss at chance level is normal
FALLS = 0.02  # fall of the k-NN accuracy below its maximum that is a fault
WAIT = 10.0  # percent of the time spent waiting for images; `simclr bench` has the same limit
SELECTED = ("knn", "linear", "finetune", "distill")  # commands whose settings could be selected on test images
NO_CHOICE = ("run", "teacher", "data", "out", "fresh", "overwrite", "seed", "machine", "baselines", "log_every",
             "save_every")  # fmt: skip


def run_findings(record: RunRecord) -> list[Finding]:
    """Return all findings about a run, those that are in order included."""
    return [finding for rule in RULES for finding in rule(record)]


def run_warnings(record: RunRecord) -> list[Finding]:
    """Return the findings about a run that are a warning or a failure."""
    return [finding for finding in run_findings(record) if finding.level != "ok"]


def comparison_warnings(records: Sequence[RunRecord]) -> list[Finding]:
    """Return the findings about a comparison of runs."""
    warnings = []
    codes = sorted({code for record in records for code in codes_of(record)})
    if len(codes) > 1:
        text = f"The runs come from {len(codes)} versions of the code ({', '.join(codes)})."
        warnings.append(Finding("code", "warning", f"{text} Differences may be due to the code."))
    versions = {record.starts[-1].get("torch") for record in records if record.starts} - {None}
    if len(versions) > 1:
        text = f"The runs come from {len(versions)} versions of torch ({', '.join(sorted(versions))})."
        warnings.append(Finding("torch", "warning", text))
    images = {record.data.get("fingerprint") for record in records} - {None}
    if len(images) > 1:
        text = f"The runs were trained on {len(images)} different sets of images."
        warnings.append(Finding("images", "warning", text))
    measured = [record for record in records if any(_on_test(row) for m in record.current for row in m.rows)]
    settings = len(group_by_settings(measured))
    if settings > 2:
        text = (
            f"{settings} settings are measured on test images: selecting the best of them there would bias its figure."
        )
        warnings.append(Finding("selection", "warning", text))
    return warnings


def codes_of(record: RunRecord) -> list[str]:
    """Return the versions of the code, as hashes, that trained and measured a run."""
    starts = [str(start["code"]) for start in record.starts if start.get("code")]
    rows = [str(row["code"]) for m in record.current for row in m.rows if row.get("code")]
    return list(dict.fromkeys(starts + rows))


# the log


def _progress(record: RunRecord) -> Iterator[Finding]:
    if not record.finished:
        part = f" of {record.steps:,} ({100 * record.step / record.steps:.0f} %)" if record.steps else ""
        text = (
            f"The run is not finished: its log ends at step {record.step:,}{part}. Run the same command to resume it."
        )
        yield Finding("progress", "warning", text)
    elif record.trained:
        yield Finding("progress", "ok", f"The run is finished, after {plural(record.steps or record.step, 'step')}.")


def _loss(record: RunRecord) -> Iterator[Finding]:
    values = record.series("loss")
    if bad := [(step, value) for step, value in values if not math.isfinite(value)]:
        lines = plural(len(bad), "line")
        text = f"The loss is not finite in {lines} of the log, first {bad[0][1]} at step {bad[0][0]:,}. Lower lr."
        yield Finding("loss", "FAILED", text)
    finite = np.array([value for _, value in values if math.isfinite(value)])
    if not len(finite):
        if not values and not record.finished:
            yield Finding("log", "warning", "No training step is logged yet.")
        return
    width = max(1, len(finite) // 10)
    sums = np.cumsum([0.0, *finite])
    means = (sums[width:] - sums[:-width]) / width
    last, lowest = means[-1], means.min()
    deviation = np.diff(finite).std() / math.sqrt(2 * width) if len(finite) > 1 else 0.0
    if record.chance is None:
        yield Finding("loss", "ok", f"The loss is {last:.3g} nats at the end of the log.")
        return
    level = f"chance level, {record.chance_formula} = {record.chance:.3f} nats"
    text = f"The loss is {last / record.chance:.3f} of {level}, at the end of the log"
    if last > AT_CHANCE * record.chance and (record.result is not None or record.step > max(record.warmup, EARLY)):
        text += ": positives are recognised hardly better than by chance. lr is too low or too high, or positives are"
        yield Finding("loss", "FAILED", f"{text} shuffled; simclr doctor DATA tests it.")
    elif last > lowest + RISES * record.chance + NOISE * deviation:
        lowest_part = f"{lowest / record.chance:.3f}"
        yield Finding("loss", "warning", f"{text}, after {lowest_part} before: it rises again. Lower lr.")
    else:
        yield Finding("loss", "ok", f"{text}.")


def _embeddings(record: RunRecord) -> Iterator[Finding]:
    for name in ("embedding_std", "health_embedding_std"):
        values = [value for _, value in record.series(name) if math.isfinite(value)]
        if not values:
            continue
        value = float(np.mean(values[-max(1, len(values) // 10) :]))
        text = (
            f"The {term(name).label} of the embeddings is {value:.2g} at the end of the log (1 is isotropic, 0 a point)"
        )
        if value < COLLAPSED:
            yield Finding("embeddings", "FAILED", f"{text}: they have collapsed. Lower lr or lengthen the warm-up.")
            return
        if name == "embedding_std":
            yield Finding("embeddings", "ok", f"{text}.")
    idle = record.last("health_idle_dimensions")
    if idle is not None and idle > 0.5:
        text = f"{100 * idle:.0f} % of the dimensions of the embedding have almost no deviation."
        yield Finding("dimensions", "warning", text)


def _rank(record: RunRecord) -> Iterator[Finding]:
    rank, features = record.last("rankme"), record.card.get("features")
    local = (record.batch or 0) // record.processes
    if rank is None or not local:
        return
    maximum = min(x for x in (RANK_ROWS, local, features) if x)
    text = f"The effective rank of the features is {rank:.2g} of at most {maximum}"
    if rank < max(FEW_DIMENSIONS * maximum, 1.5):
        yield Finding("rank", "warning", f"{text}: they have collapsed to few dimensions.")
    else:
        yield Finding("rank", "ok", f"{text}.")


def _data_wait(record: RunRecord) -> Iterator[Finding]:
    waited = total = 0.0
    for lines in record.segments:
        before = None
        for line in lines:
            if "data_wait_percent" in line and "seconds" in line:
                if before is not None:  # the first line of a start includes the start of its workers
                    waited += line["data_wait_percent"] * (line["seconds"] - before)
                    total += line["seconds"] - before
                before = line["seconds"]
    if total:
        text = f"The network waited for images {waited / total:.0f} % of the time"
        slow = waited / total > WAIT
        remedy = "; simclr bench says what to change." if slow else "."
        yield Finding("loading", "warning" if slow else "ok", text + remedy)


def _knn(record: RunRecord) -> Iterator[Finding]:
    values = [value for _, value in record.series("knn_top1") if math.isfinite(value)]
    if values:
        falls = values[-1] < max(values) - FALLS
        text = f"The k-NN top-1 accuracy is {values[-1]:.1%} at the end of the log"
        text += f", but was {max(values):.1%} before. Lower lr or train for fewer epochs." if falls else "."
        yield Finding("k-NN", "warning" if falls else "ok", text)


def _unreadable_images(record: RunRecord) -> Iterator[Finding]:
    count = max(len(record.bad), (record.result or {}).get("bad", 0))
    if count:
        part = f" of {record.images:,} ({100 * count / record.images:.2g} %)" if record.images else ""
        verb = "was" if count == 1 else "were"
        text = f"{plural(count, 'image')}{part} could not be read and {verb} replaced; bad_files.csv lists them."
        yield Finding("images", "warning", text)


def _unreadable_files(record: RunRecord) -> Iterator[Finding]:
    if record.truncated:
        lines, verb = plural(record.truncated, "line"), "is" if record.truncated == 1 else "are"
        yield Finding("log", "warning", f"{lines} of metrics.jsonl could not be read and {verb} left out.")
    for name in record.unreadable:
        yield Finding("files", "warning", f"{name} could not be read and is left out.")


# results


def _evaluated_images(record: RunRecord) -> Iterator[Finding]:
    holdout = [m for m in record.current if any(row["evaluated_on"] == "holdout" for row in m.rows)]
    seen = [m for m in record.current if m not in holdout and any(row["seen_in_pretraining"] for row in m.rows)]
    if seen:
        text = f"{_files(seen)}, measured on images that pretraining on the same data has seen."
        yield Finding("seen images", "warning", text)
    if holdout:
        text = (
            f"{_files(holdout)}, measured on a hold-out of the training images for the choice of settings, not on test"
        )
        yield Finding("hold-out", "warning", f"{text} images.")


def _other_weights(record: RunRecord) -> Iterator[Finding]:
    for m in record.current:
        is_here = "/" not in m.file and m.file != "result.json"
        measured = {str(row["weights"]) for row in m.rows if row.get("weights")}
        if is_here and measured and record.weights and record.weights not in measured:
            text = f"{m.file} measured other weights ({', '.join(sorted(measured))}) than those in the folder"
            yield Finding("weights", "warning", f"{text} ({record.weights}). Measure again.")


def _codes(record: RunRecord) -> Iterator[Finding]:
    codes = codes_of(record)
    if len(codes) > 1:
        text = f"Training and measurements come from {len(codes)} versions of the code: {', '.join(codes)}."
        yield Finding("code", "warning", text)


def _baselines(record: RunRecord) -> Iterator[Finding]:
    for m in record.current:
        for row in m.rows:
            if row["role"] != "model" or not row.get("interval"):
                continue
            unit = unit_label(row["unit"])
            for other in m.rows:
                if _is_baseline_of(other, row, m) and other["value"] >= row["interval"][0]:
                    figure = f"{number(row['value'], unit)} {term(row['metric']).label}"
                    text = f"{m.file}: {row['layer']} of the {row['name']} has {figure}, not significantly more than"
                    yield Finding("baselines", "warning", f"{text} {number(other['value'], unit)} of {other['name']}.")


def _is_baseline_of(other: dict[str, Any], row: dict[str, Any], m: Measurement) -> bool:
    """Return whether `other` is the same figure of a baseline that any model should surpass: not of another encoder."""
    same = m.data_of(other) == m.data_of(row) and all(other.get(k) == row.get(k) for k in ("metric", "protocol"))
    another_run = "run" in (other.get("detail") or {})
    return (
        other["role"] == "baseline" and same and not another_run and other.get("layer") in ("pixels", row.get("layer"))
    )


def _distillation(record: RunRecord) -> Iterator[Finding]:
    if text := above_uniform((record.result or {}).get("loss_over_uniform")):
        yield Finding("distillation", "FAILED", text[0].upper() + text[1:])


def _few_labels(record: RunRecord) -> Iterator[Finding]:
    for m in record.current:
        for row in m.rows:
            where, linear = f"{m.file}: the {row['name']}", (row.get("detail") or {}).get(f"linear_{row['metric']}")
            if row["role"] != "baseline" and row["metric"] == "top1" and row.get("constant") is not None:
                text = f"{where} predicts class {row['constant']} for all or nearly all images"
                yield Finding("constant prediction", "FAILED", f"{text}: nothing was learned from the labels.")
            if is_number(linear) and row["value"] < linear:
                unit = unit_label(row["unit"])
                text = f"{where} has {number(row['value'], unit)} {term(row['metric']).label}, less than"
                text = f"{text} {number(linear, unit)} of a linear probe on the same labels"
                yield Finding("linear probe", "warning", f"{text}: fine-tuning made it worse.")


def _selection(record: RunRecord) -> Iterator[Finding]:
    groups: dict[tuple, dict[str, float]] = defaultdict(dict)
    for m in record.measurements:
        chosen = {k: v for k, v in m.settings.items() if k not in NO_CHOICE}
        labels = m.settings.get("fraction"), m.settings.get("labelled")
        for row in m.rows:
            if row["role"] == "model" and row["metric"] == "top1" and m.command in SELECTED and _on_test(row):
                method = row.get("protocol") if m.command in ("finetune", "distill") else m.command
                setting = repr((chosen, row.get("protocol"), row.get("layer")))
                groups[method, m.data_of(row), labels][setting] = row["value"]
    for (method, data, _), values in groups.items():
        if len(values) > 1:
            low, high = (number(end(values.values()), "%") for end in (min, max))
            text = (
                f"{method}: the test images of {data} were read with {len(values)} settings, {low} to {high}: selecting"
            )
            yield Finding("selection", "warning", f"{text} the best of them there would bias its figure.")


RULES = (_progress, _loss, _embeddings, _rank, _data_wait, _knn, _unreadable_images, _unreadable_files,
         _evaluated_images, _other_weights, _codes, _baselines, _distillation, _few_labels, _selection)  # fmt: skip


def _files(measurements: list[Measurement]) -> str:
    """Return files with their number of images; only the first three of many."""
    files = [f"{m.file} (n = {max(row.get('n', 0) for row in m.rows):,})" for m in measurements[:3]]
    return ", ".join(files) + (f" and {len(measurements) - 3} others" if len(measurements) > 3 else "")


def _on_test(row: dict[str, Any]) -> bool:
    return row["evaluated_on"] == "test" and bool(row.get("interval"))
