"""Result records and result files. Machine-readable fields say what a figure is of; names and texts are for people."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from simclr.errors import RunError
from simclr.runs.files import require_file_path
from simclr.runs.reading import file_hash
from simclr.runs.recipe import is_import_path

SPLIT = "fitted on train, chosen on held-out train, read once on test"
FROZEN = "the whole encoder, batch statistics included"
FRACTIONS = ("mean_per_class", "map11", "ece", "idle_dimensions", "agreement")
OTHER_UNITS = {
    "loss": "nats",
    "entropy": "nats",
    "rankme": "dimensions",
    "rankme_h": "dimensions",
    "rankme_z": "dimensions",
}
OLD_BASELINES = ("raw pixels", "untrained encoder", "from scratch")  # names before `role` was written


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure and the way it was obtained."""

    name: str
    """what was measured, for people"""
    role: Literal["model", "baseline", "teacher"] = "model"
    """the measured model itself, something it is compared with, or the network that taught it"""
    protocol: str
    """method of measurement, for people"""
    metric: str
    """top1, mean_per_class, map11, or the name of another figure"""
    value: float
    unit: str = "fraction"
    """fraction, nats, dimensions, or empty for a plain number"""
    interval: tuple[float, float] | None = None
    """95 % confidence interval, see `interval_of`; None if there is none"""
    n: int
    """number of images measured"""
    evaluated_on: Literal["test", "holdout", "train", "unlabelled"] = "test"
    """images measured: the test split, a hold-out of the training split, the training split, or images that have
    neither labels nor a test split"""
    seen_in_pretraining: bool | None = None
    """whether pretraining, or another training of the encoder, has read images of this split; None if unknown"""
    target: str = ""
    """what is predicted, if it is not the class of the image"""
    interval_of: str = "bootstrap over the test images"
    frozen: str = FROZEN
    layer: str = "h"
    transform: str = ""
    split: str = SPLIT
    detail: dict[str, Any] = field(default_factory=dict)
    hits: str | None = None
    """which test images were classified correctly, one bit for each in their order, in base64; for paired tests"""
    answers: str | None = None
    """hash of the classes of the test images in their order; hits of equal hashes belong to the same images"""
    constant: int | None = None
    """number of the class that is predicted for all or nearly all images, see `constant_prediction`; None if there is
    none"""


def result_of(row: dict[str, Any]) -> Result:
    """Return a row of a result file as a record, without fields of other versions."""
    fields = {name: row[name] for name in Result.__dataclass_fields__ if name in row}
    return Result(**{**fields, "interval": tuple(row["interval"]) if row.get("interval") else None})


def unit_of(metric: str) -> str:
    """Return the unit of a figure: fraction, nats, dimensions, or an empty string for a plain number."""
    return "fraction" if metric.endswith("top1") or metric in FRACTIONS else OTHER_UNITS.get(metric, "")


class NamedRun(NamedTuple):
    """What RUN names on a command line."""

    path: Path
    """run folder, or weights file"""
    encoder: str | None = None
    """encoder that the user has named beside it: an import path, or, with `is_timm`, a model of timm"""
    is_timm: bool = False


def named_run(run: str | Path) -> NamedRun:
    """Return what RUN names: a run folder or a weights file in it, `timm:NAME:FILE` for the weights of a model of timm,
    `timm:NAME` for those in timm's cache, or `package.module:function:RUN` for a run whose encoder comes from code of
    the user's own."""
    first, second, path = [*str(run).split(":", 2), "", ""][:3]
    if first == "timm" and second:
        return NamedRun(Path(path) if path else _cached_weights(run, second), second, is_timm=True)
    if path and is_import_path(f"{first}:{second}"):
        return NamedRun(Path(path), f"{first}:{second}")
    return NamedRun(Path(run))


def _cached_weights(run: str | Path, name: str) -> Path:
    """Return the file in the cache of Hugging Face in which timm keeps the weights of a model that it has downloaded;
    raise RunError if it is not there."""
    import timm  # takes a second, and other runs do not need it
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    repository = (config and config.hf_hub_id) or f"timm/{name}"
    file = (config and config.hf_hub_filename) or "model.safetensors"
    found = try_to_load_from_cache(repository, file)
    if not isinstance(found, str):
        remedy = f"`hf download {repository} {file}` gets them; or name a file, timm:{name}:FILE"
        raise RunError(run, "names a model of timm whose weights are not on this machine", remedy)
    return Path(found)


def require_run(run: str | Path) -> None:
    """Raise RunError unless RUN names a finished run, a weights file in one, a program, or a model of timm."""
    named = named_run(run)
    path, folder = named.path, run_folder(run)
    if named.is_timm or (folder / "card.json").is_file() or (path.suffix == ".onnx" and path.is_file()):
        return
    if not path.exists():
        raise RunError(path, "does not exist", "Name the folder of a finished run")
    if (folder / "recipe.yaml").is_file():
        remedy = "Run the same command again to resume it"
        raise RunError(path, "contains no encoder, since the run is not finished", remedy)
    if path.suffix == ".safetensors":
        raise RunError(path, "has no card.json beside it, which says what network it is of", "Copy it from its run")
    problem = "is a file, not a run" if path.is_file() else "is not a run, since it contains no card.json"
    raise RunError(path, problem, "Name the folder of a finished run; commands take RUN before DATA")


def run_folder(run: str | Path) -> Path:
    """Return the run folder that RUN names: the folder itself, or the folder of a weights file; for a model of timm the
    folder runs/timm-NAME, which holds its results."""
    named = named_run(run)
    if named.is_timm:
        return Path("runs") / f"timm-{named.encoder}"
    return named.path.parent if named.path.suffix == ".safetensors" else named.path


def places_of_start(start: Any, run: Path) -> tuple[Any, Path, Path]:
    """Return where the run may be that the run in the folder `run` started from: where it was, or, if both were moved
    together, beside or above it."""
    return start, run.parent / Path(str(start)).name, run.parent


def weights_path(run: str | Path) -> Path:
    """Return the file that holds the weights of the encoder of RUN."""
    named = named_run(run)
    is_file = named.is_timm or named.path.suffix == ".onnx"
    return named.path if is_file else run_folder(run) / "encoder.safetensors"


def result_path(task: Any, suffix: str = "") -> Path:
    """Return the file that a measurement writes: `task.out`, or COMMAND.json in the run folder, the name with a suffix.

    Call it before anything is computed: it raises an error if the file cannot be written.
    """
    return require_file_path(task.out or run_folder(task.run) / f"{task.command}{suffix}.json")


def provenance(run: str | Path) -> dict[str, str]:
    """Return the hashes of a run's recipe (of its card, if there is no recipe) and of its weights, as far as there are
    such files."""
    folder = run_folder(run)
    recipe = folder / "recipe.yaml"
    paths = {"recipe": recipe if recipe.is_file() else folder / "card.json", "weights": weights_path(run)}
    return {name: file_hash(path)[:12] for name, path in paths.items() if path.is_file()}


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a result file with the fields that older versions did not write."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise RunError(path, "is not a JSON file", "Measure again") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise RunError(path, "is not a result file (it has no list of results)")
    return completed(content, path.stem)


def completed(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the content of a result file called `name` in which `command` and the fields of each row that decide are
    present; those that an older version did not write are inferred from its texts."""
    command = str(content.get("command") or content.get("task") or name)
    rows = [{**_inferred(row, command), **row} if isinstance(row, dict) else row for row in content["results"]]
    return {**content, "command": command, "results": rows}


def _inferred(row: dict[str, Any], command: str) -> dict[str, Any]:
    """Return the fields that version 0.1 expressed by words only. The one place that reads these words."""
    name, split, detail = str(row.get("name", "")), str(row.get("split", "")), row.get("detail") or {}
    role = "teacher" if name == "teacher" else "model"
    if name in OLD_BASELINES[:2] or (command == "transfer" and ("run" in detail or name.startswith(OLD_BASELINES[2]))):
        role = "baseline"
    evaluated_on, seen = "test", None
    if "has seen" in split:
        evaluated_on, seen = "unlabelled", True
    elif "held out" in split and "test" not in split:
        evaluated_on, seen = "holdout", True
    return {
        "role": role,
        "evaluated_on": evaluated_on,
        "seen_in_pretraining": seen,
        "target": name if command == "information" else "",
        "unit": unit_of(str(row.get("metric", ""))),
        "constant": None,
    }
