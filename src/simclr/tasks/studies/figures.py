"""Evaluations of the members of a study, and their figures by name, such as `linear h`."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from simclr.runs.environment import code_hash
from simclr.tasks.information import Information
from simclr.tasks.knn import Knn
from simclr.tasks.linear import Linear
from simclr.tasks.measuring import Evaluation, K, measure_together
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.studies.ablation import Ablation
from simclr.tasks.training import Training
from simclr.tasks.transfer import Transfer

if TYPE_CHECKING:
    from simclr.tasks.study import Study


def evaluations(study: "Study", ablation: Ablation, last: Training, images: int) -> list[Evaluation]:
    """Return the evaluations of the network of a member's last task; `images` is the number of labelled ones."""
    common: dict[str, Any] = {"run": last.folder, "machine": last.machine}
    if ablation.evaluation == "transfer":
        common |= ablation.settings | {"seed": last.seed}  # trainings from random weights, too, differ between seeds
        if not isinstance(last, Pretrain):  # another start of the same network, whose random weights are compared once
            common["protocols"] = tuple(name for name in common["protocols"] if name != "scratch")
        return [Transfer(data=list(study.transfer_to), out=last.folder / "transfer", **common)]
    if not isinstance(last, Pretrain):
        return []  # it has a classifier of its own, which the run has evaluated
    layers = ablation.layers if last.head_layers else ("h",)
    if ablation.evaluation == "information":
        file = last.folder / "information.json"
        return [Information(data=study.data, layers=layers, out=file, **ablation.settings, **common)]
    kinds: dict[str, Any] = {"linear": Linear, "knn": Knn}
    settings: dict[str, dict[str, Any]] = {"linear": {}, "knn": {"k": min(K, images)}}
    return [
        kinds[name](data=study.data, layer=layer, baselines=False, **settings[name], **common,
                    out=last.folder / f"{name}{'' if layer == 'h' else f'-{layer}'}.json")
        for layer in layers for name in study.measure
    ]  # fmt: skip


def figures_of(ablation: Ablation, last: Training, evaluated: list[Evaluation]) -> dict[str, dict[str, Any]]:
    """Return the results of a finished member by the names of its figures; evaluations that are missing are made."""
    figures: dict[str, dict[str, Any]] = {}
    for evaluation, content in zip(evaluated, measure_together(evaluated), strict=True):
        figures |= dict(_named(evaluation, content["results"]))
    result = json.loads((last.folder / "result.json").read_text(encoding="utf-8"))
    if not isinstance(last, Pretrain):
        figures["classifier"] = next(r for r in result["results"] if r["metric"] == "top1" and r["name"] != "teacher")
    for name in ablation.checks:
        if (value := result.get(f"health_{name}")) is not None:
            figures[name] = {"value": value, "interval": None, "n": result["images"], "code": code_hash()}
    return figures


def _named(evaluation: Evaluation, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    match evaluation:
        case Information():
            yield from ((f"{row['target']}, {row['layer']}", row) for row in rows)
        case Transfer():
            accuracies = [row for row in rows if row["metric"] in ("top1", "map11")]
            for protocol in evaluation.protocols:
                own = [row for row in accuracies if row["detail"]["protocol"] == protocol]
                mean = sum(row["value"] for row in own) / len(own)  # over the data sets
                yield f"transfer, {protocol}", {**own[0], "value": mean, "interval": None}
        case _:
            yield f"{evaluation.command} {evaluation.layer}", rows[0]
