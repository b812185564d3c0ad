"""Evaluations of the members of a study: each is computed once, and each image is read once for all of them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr.errors import RunError
from simclr.evaluation.protocol import SharedFeatures, models_to_evaluate
from simclr.runs.recipe import plain
from simclr.runs.results import provenance, read_results
from simclr.tasks.information import Information
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.transfer import Transfer

K = 20  # number of neighbours
Evaluation = Linear | Knn | Information | Transfer
ELSEWHERE = {"run", "data", "out", "machine"}  # settings of an evaluation that are implied by the weights or the run


def measure_together(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the content of the result file of each evaluation of one encoder on the same images; those without such a
    file are computed."""
    contents = [recorded(evaluation) for evaluation in evaluations]
    left = [e for e, content in zip(evaluations, contents, strict=True) if content is None]
    layers = dict.fromkeys(e.layer for e in left if isinstance(e, Linear | Knn))
    shared = SharedFeatures([models_to_evaluate(left[0].run, False, layer)[0] for layer in layers])
    return [
        content or (evaluation(shared) if isinstance(evaluation, Linear | Knn) else evaluation())
        for evaluation, content in zip(evaluations, contents, strict=True)
    ]


def measure_once(evaluation: Linear | Knn) -> dict[str, Any]:
    """Return the first result of an evaluation, which is computed if it is not recorded."""
    return (recorded(evaluation) or evaluation())["results"][0]


def result_file(evaluation: Evaluation) -> Path:
    """Return the file that an evaluation of a member writes."""
    return evaluation.out / "transfer.json" if isinstance(evaluation, Transfer) else evaluation.out


def recorded(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the content of the file of an evaluation if these weights have been evaluated with these settings."""
    with contextlib.suppress(RunError, OSError):  # there is none, or it is damaged
        content, settings = read_results(result_file(evaluation)), plain(evaluation)
        row, before = next(iter(content["results"]), {}), content.get("settings", {})
        decide = settings.keys() - ELSEWHERE | ({"data"} if isinstance(evaluation, Transfer) else set())
        is_same = all(before.get(name) == settings[name] for name in decide)
        if is_same and row.get("weights") == provenance(evaluation.run)["weights"]:
            return content
    return None
