"""Result records with metrics and confidence intervals, the printed table, and the content of a result file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from simclr.evaluation.examples import Examples, save_examples
from simclr.evaluation.intervals import Interval, bootstrap_interval, class_interval, resampled_interval
from simclr.evaluation.metrics import METRICS, constant_prediction
from simclr.runs.environment import code_hash, environment
from simclr.runs.files import number_existing, write_atomically
from simclr.runs.machine import is_first_process
from simclr.runs.recipe import plain
from simclr.runs.results import Result, provenance, result_of


def figure(scores: Float[Tensor, "n c"], truth: Shaped[Tensor, "n ..."], metric: str = "top1", **fields: Any) -> Result:
    """Return the result record of `metric` for scores and classes (n,), or scores and present classes (n, c); `fields`
    are the other fields of `Result`."""
    if metric == "top1":
        bits = np.packbits(hits(scores, truth) > 0)
        fields["hits"] = base64.b64encode(bits).decode()
        fields["answers"] = hashlib.sha256(truth.cpu().numpy().tobytes()).hexdigest()[:12]
        fields["constant"] = constant_prediction(scores, truth)
    span = interval(metric, scores, truth)
    if span is None:
        fields["interval_of"] = "none"
    elif metric == "mean_per_class":
        fields["interval_of"] = "accuracies within the classes, over the test images"
    return Result(metric=metric, value=METRICS[metric](scores, truth), interval=span, n=len(truth), **fields)


def hits(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> np.ndarray:
    """Return 1.0 for each row whose highest score is at its label, else 0.0."""
    return (scores.argmax(1) == labels).cpu().double().numpy()


def interval(metric: str, scores: Float[Tensor, "n c"], truth: Shaped[Tensor, "n ..."]) -> Interval | None:
    """Return the 95 % interval of a metric over the test images, if they say anything about it."""
    match metric:
        case "top1":
            return bootstrap_interval(hits(scores, truth))
        case "mean_per_class":
            return class_interval(hits(scores, truth), truth.cpu().numpy())
    return resampled_interval(METRICS[metric], scores.cpu(), truth.cpu())


class ResultTable(dict):
    """Content of a result file, which notebooks show as the table of its figures."""

    def _repr_html_(self) -> str:
        cells = ["model", "protocol", "layer", "figure", "value", "95 % interval", "n"]
        rows = [[r.name, r.protocol, r.layer, *_cells(r), f"{r.n:,}"] for r in map(result_of, self["results"])]
        lines = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in
                 [("th", cells), *(("td", row) for row in rows)])  # fmt: skip
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def results_content(results: Sequence[Result], task: Any, run: Path | None) -> dict[str, Any]:
    """Return the content of a result file: each figure with the hashes of code, recipe and weights, the settings and
    the environment. `run` is the folder of the encoder."""
    origin = {"code": code_hash(), **(provenance(run) if run else {})}
    return {
        "command": task.command,
        "task": task.command,  # the key that version 0.1 reads
        "settings": plain(task),
        "results": [{**asdict(result), **origin} for result in results],
        "environment": environment(),
    }


def write_results(results: Sequence[Result], task: Any, path: Path, examples: Examples | None = None) -> dict[str, Any]:
    """Print the table of results, write them to `path` as JSON, with the test images `examples` beside it, and return
    the content of the file. An older file keeps its content under a number. Of several processes the first writes."""
    content = results_content(results, task, task.run)
    if not is_first_process():
        return ResultTable(content)
    data = ", ".join(task.data) if isinstance(task.data, list) else task.data
    print(f"{task.command} of {task.run} on {data}\n{format_table(results)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    number_existing(path)
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    if examples is not None:
        save_examples(examples, path)
    print(f"wrote {path}")
    return ResultTable(content)


def format_table(results: Sequence[Result]) -> str:
    """Return results as aligned text."""
    rows = [(r.name, r.protocol, r.layer, *_cells(r), f"n={r.n:,}{_p_value(r)}{_constant(r)}") for r in results]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cells(r: Result) -> tuple[str, str, str]:
    percent = r.unit == "fraction"
    form = (lambda x: f"{100 * x:.1f}") if percent else (lambda x: f"{x:.4g}")
    span = f"[{form(r.interval[0])}, {form(r.interval[1])}]" if r.interval else ""
    return r.metric, f"{form(r.value):>6}{' %' if percent else ''}", span


def _constant(r: Result) -> str:
    return "" if r.constant is None else f"  constant prediction: class {r.constant} for all or nearly all images"


def _p_value(r: Result) -> str:
    return f"  permutation test against the first row: p = {r.detail['p']:.2g}" if "p" in r.detail else ""
