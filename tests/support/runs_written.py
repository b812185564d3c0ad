"""Run folders as tasks write them, made by hand so that a fault can be put in any of their files."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

BATCH, IMAGES, STEPS = 64, 1000, 157  # ten epochs


def recipe(**changes: Any) -> dict[str, Any]:
    """Settings of a pretraining run, as they are saved."""
    return {
        "data": "photographs", "encoder": "simclr_resnet18", "encoder_options": {"width": 0.5},
        "views": {"size": 32}, "temperature": 0.5, "batch": BATCH, "epochs": 10, "warmup_epochs": 1, "held_out": 0,
        "seed": 0, "machine": {"devices": 1, "nodes": 1}, **changes,
    }  # fmt: skip


def lines(steps: int = STEPS, every: int = 10, **changes: Any) -> list[dict[str, Any]]:
    """A log of a run without faults; `changes` replace the values of each line."""
    chance = math.log(2 * BATCH - 1)
    return [
        {
            "step": step, "loss": chance * (0.9 - 0.4 * step / STEPS), "lr": 0.3, "loss_over_chance": 0.7,
            "contrastive_top1": 0.3, "positive_cosine": 0.6, "negative_cosine": 0.0, "embedding_std": 0.98,
            "rankme": 40.0, "images_per_s": 500.0, "data_wait_percent": 1.0, "seconds": step / 10, **changes,
        }
        for step in range(every, steps + 1, every)
    ]  # fmt: skip


def row(name: str = "pretrained encoder", value: float = 0.6, **changes: Any) -> dict[str, Any]:
    """A figure as a result file holds it."""
    return {
        "name": name, "role": "model" if name in ("pretrained encoder", "student", "from scratch") else "baseline",
        "unit": "fraction", "evaluated_on": "test", "seen_in_pretraining": False, "target": "",
        "protocol": "kNN, k=20", "metric": "top1", "value": value, "interval": [value - 0.02, value + 0.02], "n": 400,
        "interval_of": "bootstrap over the test images", "frozen": "the whole encoder", "layer": "h",
        "transform": "whole image, bicubic, 32 px",
        "split": "fitted on train, chosen on held-out train, read once on test", "detail": {}, "code": "c0de",
        **changes,
    }  # fmt: skip


def measured(command: str, *rows: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The content of a result file."""
    settings = {"data": "labelled", "seed": 0, **settings}
    return {"command": command, "task": command, "settings": settings, "results": list(rows),
            "environment": {"command": f"simclr {command} RUN labelled"}}  # fmt: skip


KNN = measured("knn", row("raw pixels", 0.3, layer="pixels"), row("untrained encoder", 0.25), row())


def write_run(path: Path, *, kind: str = "pretrain", settings: dict[str, Any] | None = None,
              log: list[dict[str, Any]] | None = None, finished: bool = True,
              start: dict[str, Any] | None = None, **files: dict[str, Any]) -> Path:  # fmt: skip
    """A finished run of ten epochs with a k-NN measurement, unless the arguments say otherwise.

    `files` are JSON files by their name without its ending; None leaves one out.
    """
    path.mkdir(parents=True)
    text = yaml.safe_dump(recipe(**(settings or {})), sort_keys=False)
    (path / "recipe.yaml").write_text(f"# simclr {kind}: the settings of this run, usable as --config\n{text}")
    log = lines() if log is None else log
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    contents = {
        "environment": [{"code": "c0de", "torch": "2.14", "cores": 2, "gpu": None, **(start or {})}],
        "data": {"images": IMAGES, "fingerprint": "abc"},
        "result": {"task": kind, "images": IMAGES, "steps": STEPS, **(log[-1] if log else {}), "bad": 0},
        "card": {"features": 256, "encoder": {"name": "simclr_resnet18"}, "source": {"task": kind}},
        "knn": KNN,
        **({} if finished else {"result": None, "card": None, "knn": None}),
        **files,
    }  # fmt: skip
    for name, content in contents.items():
        if content is not None:
            (path / name).with_suffix(".json").write_text(json.dumps(content))
    return path
