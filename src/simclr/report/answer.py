"""Answer of a report: what was trained, the main figures beside their baselines, and a verdict in a sentence."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from simclr.evaluation.intervals import difference_interval
from simclr.evaluation.metrics import METRICS
from simclr.report.comparison import hits
from simclr.report.record import Measurement, RunRecord, is_number
from simclr.report.words import duration, interval, listed, number, plural, setting_text, term, unit_label
from simclr.runs.recipe import flatten
from simclr.views import describe_sizes

TITLES = {"linear": "Linear classifier", "knn": "Nearest neighbours", "finetune": "Fine-tuned network",
          "distill": "Distilled network"}  # fmt: skip
SUBJECTS = {
    "linear": "A linear classifier on the features",
    "knn": "A vote of the nearest training images",
    "distill": "The distilled network",
}
OWN = ("finetune", "distill")  # commands whose figure is that of the run itself


class Answer(NamedTuple):
    """A figure of the model of a run, and the same figure of what it is compared with."""

    measurement: Measurement
    model: dict[str, Any]
    others: list[dict[str, Any]]

    @property
    def unit(self) -> str:
        """Unit of the figures."""
        return unit_label(self.model["unit"])


def head(record: RunRecord) -> str:
    """Return a sentence on what was trained on which images, for how long, and whether it is finished."""
    card, recipe = record.card, record.recipe
    encoder = recipe.get("encoder") or (card.get("encoder") or {}).get("name") or "an encoder"
    size = record.settings.get("views.size") or card.get("image_size")
    sizes = describe_sizes(record.view_policies) if record.view_policies else f"{size} px" if size else ""
    options = recipe.get("encoder_options") or (card.get("encoder") or {}).get("options") or {}
    what = f"{encoder}{f' ({options_text(options)})' if options else ''}{f' at {sizes}' if sizes else ''}"
    if not record.trained:
        source = (card.get("source") or {}).get("checkpoint")
        return f"{what}, {f'converted from {source}' if source else 'weights without a training log'}."
    done = {"pretrain": "pretrained without labels", "finetune": "fine-tuned with labels", "distill": "distilled"}
    how = done.get(record.kind, "trained")
    if recipe.get("from_scratch"):
        how = "trained with labels from fresh weights"
    images = f"{record.images:,} images of " if record.images else ""
    passes = record.step / record.epoch if record.epoch else 0
    epochs = f", {passes:{',.0f' if passes >= 100 else '.3g'}} epochs" if passes else ""
    batch = f" of {plural(record.batch, 'image')}" if record.batch else ""
    whole = f" of {record.steps:,}" if record.steps and not record.finished else ""
    state = "finished" if record.finished else "not finished"
    starts = len(record.segments)
    return (
        f"{what} {how} on {images}{recipe.get('data', 'unknown data')}: {record.step:,}{whole} steps{batch}{epochs}, "
        f"{duration(record.seconds)}{f' in {starts} starts' * (starts > 1)}{_where(record)}; {state}."
    )


def _where(record: RunRecord) -> str:
    if not record.starts:
        return ""
    last = record.starts[-1]
    count = record.processes
    device = last.get("gpu") or plural(last.get("cores") or 1, "CPU core")
    return f" on {f'{count} processes, ' * (count > 1)}{device}"


def answers(record: RunRecord) -> Iterator[Answer]:
    """Yield the main figures of a run: linear and k-NN accuracy, or that of its own classifier."""
    for command in ("linear", "knn", *OWN):
        for m in record.measurements:
            layers = ("h", "pixels") if command in ("linear", "knn") else (m.rows[0].get("layer"),)
            rows = [row for row in m.rows if row["metric"] in METRICS and row.get("layer") in layers]
            model = next((row for row in rows if row["role"] == "model"), None)
            is_own = record.kind == command  # a fine-tuned run, whose result is its own figure, not that of one below
            if m.older or m.command != command or model is None or (m.file == "result.json") != is_own:
                continue
            same = [row for row in rows if row["role"] != "model"
                    and all(row.get(k) == model.get(k) for k in ("metric", "protocol"))]  # fmt: skip
            probe = (model.get("detail") or {}).get(f"linear_{model['metric']}")
            if is_number(probe):
                same.append({**model, "name": "linear probe on the same labels", "role": "baseline", "value": probe,
                             "interval": None, "hits": None})  # fmt: skip
            yield Answer(m, model, same)
            break


def answer(record: RunRecord) -> str:
    """Return the main figures as sentences: accuracy beside its baselines, or else the health of the log."""
    return " ".join(map(described, answers(record))) or _health(record)


def described(a: Answer) -> str:
    """Return a figure with its interval, images and baselines as a sentence."""
    beside = [f"{row['name']} ({number(row['value'], a.unit)})" for row in a.others]
    figure = f"{number(a.model['value'], a.unit)} {term(a.model['metric']).label}"
    return (
        f"{a.model.get('protocol', a.measurement.command)}: {figure} {interval(a.model.get('interval'), a.unit)} on "
        f"{plural(a.model.get('n', 0), 'image')} of {a.measurement.data}"
        f"{', beside ' + ' and '.join(beside) if beside else ''}."
    )


def verdict(record: RunRecord) -> str:
    """Return the first of the main figures, and by how much it exceeds its baselines, as a sentence."""
    a = next(answers(record), None)
    if a is None:
        return _health(record)
    model, where = a.model, {"holdout": "held-out training images"}.get(a.model["evaluated_on"], "test images")
    subject = SUBJECTS.get(a.measurement.command) or _trained(model)
    figure = f"{number(model['value'], a.unit)} of {model.get('n', 0):,} {where}"
    right = f"is right on {figure}" if model["metric"] == "top1" else f"has {figure} ({term(model['metric']).label})"
    ends = []
    for sign, word in ((1, "more than"), (-1, "less than")):
        far = [row for row in a.others if _sign(model, row) == sign]
        if texts := [f"{_points(sign * (model['value'] - row['value']))} {word} {_named(row)}" for row in far]:
            ends.append(listed(texts))
    near = [f"{_named(row)} ({number(row['value'], a.unit)})" for row in a.others if not _sign(model, row)]
    ends += [f"no significant difference from {listed(near)}"] if near else []
    return f"{subject} {right}{': ' if ends else ''}{'; '.join(ends)}."


def bars(record: RunRecord, classes: int | None) -> list[dict[str, Any]]:
    """Return the main figures as groups of bars from 0 to 100 %; `classes` gives the chance level of top-1."""
    groups = []
    for a in answers(record):
        if a.unit != "%":
            continue
        chance = 100 / classes if classes and a.model["metric"] == "top1" else None
        rows = sorted([*a.others, a.model], key=lambda row: -row["value"])
        groups.append({
            "title": TITLES[a.measurement.command],
            "note": f"{a.model.get('protocol', '')}: {term(a.model['metric']).label} on "
                    f"{plural(a.model.get('n', 0), 'image')} of {a.measurement.data}",
            "alt": described(a),
            "chance": None if chance is None else round(chance, 2),
            "rows": [_bar(row, a) for row in rows],
        })  # fmt: skip
    return groups


def _bar(row: dict[str, Any], a: Answer) -> dict[str, Any]:
    low, high = row.get("interval") or (row["value"], row["value"])
    is_tuned = row is a.model and a.measurement.command == "finetune" and row["name"] != "from scratch"
    return {
        "name": "fine-tuned network" if is_tuned else row["name"], "role": row["role"],
        "value": number(row["value"], a.unit), "interval": interval(row.get("interval"), a.unit),
        "at": round(100 * row["value"], 2), "low": round(100 * low, 2), "high": round(100 * high, 2),
    }  # fmt: skip


def _sign(model: dict[str, Any], other: dict[str, Any]) -> int:
    """Return 1 if the model is significantly better, -1 if it is worse, else 0: by the images that both were tested on,
    if the file says which were classified correctly, else by its own interval."""
    a, b = hits(model), hits(other)
    if a is not None and b is not None and model["answers"] == other["answers"]:
        low, high = difference_interval(a, b)
    else:
        low, high = (end - other["value"] for end in model.get("interval") or (model["value"],) * 2)
    return int(low > 0) - int(high < 0)


def _trained(model: dict[str, Any]) -> str:
    images = (model.get("detail") or {}).get("images")
    how = "trained from scratch" if model["name"] == "from scratch" else "fine-tuned"
    amount = f" on {plural(images, 'labelled image')}" if images else ""
    return f"The network, {how}{amount},"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _named(row: dict[str, Any]) -> str:
    return row["name"] if row["name"] == "raw pixels" else f"the {row['name']}"


def _health(record: RunRecord) -> str:
    parts = []
    loss = record.last("loss")
    if loss is not None and record.chance:
        parts.append(f"the loss is {loss / record.chance:.2f} of chance level ({loss:.3f} nats)")
    if (top1 := record.last("contrastive_top1")) is not None and record.contrastive_chance:
        parts.append(f"contrastive top-1 is {100 * top1:.1f} % "
                     f"(chance level {100 * record.contrastive_chance:.2g} %)")  # fmt: skip
    if (knn := record.last("knn_top1")) is not None:
        parts.append(f"k-NN top-1 on training images is {100 * knn:.1f} %")
    if (std := record.last("embedding_std")) is not None:
        parts.append(f"the standard deviation of the embedding is {std:.2f} (1 is isotropic, 0 a single point)")
    if (rank := record.last("rankme")) is not None:
        parts.append(f"the effective rank of h is {rank:.3g}")
    if record.kind != "pretrain" and loss is not None:
        parts.append(f"the last loss is {loss:.3f} nats")
    if not parts:
        return "No measurement yet."
    how = " (simclr linear, simclr knn)" if record.kind == "pretrain" else ""
    return f"No measurement on test images yet{how}. At the end of the log, {', '.join(parts)}."


def options_text(options: dict[str, Any]) -> str:
    """Return options of an encoder as text."""
    return ", ".join(f"{name} {setting_text(value)}" for name, value in flatten(options))
