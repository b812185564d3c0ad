"""Settings of a distillation that are given neither in a recipe nor by a flag: those of the pretraining."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr.data.specs import open_for_pretraining
from simclr.errors import Error
from simclr.runs.recipe import plain, saved_recipe
from simclr.runs.results import places_of_start, run_folder
from simclr.tasks.adaptation import divisible, say

if TYPE_CHECKING:
    from simclr.tasks.distill import Distill

FEW = 100_000  # images below which the defaults, which are those of the paper for ImageNet, do not fit
SMALL: dict[str, Any] = {"optimizer": "sgd", "lr": 1.0, "scaling": "linear", "batch": 64, "crop_area": [0.2, 1.0]}
"""settings after a pretraining of simclr_convnet (results/v2-defaults)"""
LEARNING = ("optimizer", "lr", "scaling", "batch", "weight_decay")
OF_METHOD = {*LEARNING, "optimizer_options", "momentum", "decay_biases", "lr_schedule", "cooldown", "warmup_epochs"}
LONGEST = 9  # runs of a chain that are followed to the pretraining


def of_pretraining(base: Mapping[str, Any], processes: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a distillation after a pretraining with the settings `base`, of which some may be given:
    the others are those of pretraining as far as the paper keeps them, for half as many epochs; after that of the
    small network of `simclr suggest`, whose trainings are too short for LARS, those of SGD that were chosen on held-out
    images."""
    learning = {name: base[name] for name in LEARNING}
    if base["encoder"] == "simclr_convnet" and "optimizer" not in given:
        learning |= SMALL | {"batch": divisible(SMALL["batch"], processes)}
    return learning | {"epochs": base["epochs"] / 2} | dict(given)


def settings_without_recipe(task: "Distill", given: set[str]) -> dict[str, Any]:
    """Return the settings to use in place of the defaults of a run whose command line sets the names `given`.

    Without a recipe or a setting of the method they are those of the run in its folder if there is one, otherwise, with
    fewer than `FEW` images, those that follow from the pretraining of the teacher, if its run is found.
    """
    if OF_METHOD & {name.partition(".")[0] for name in given}:
        return {}
    saved = {} if task.fresh else saved_recipe(task.folder)
    if saved.get("data") == plain(task)["data"] and "teacher" in saved:
        settings = {name: saved[name] for name in (*LEARNING, "epochs", "crop_area") if name in saved}
        origin = f"the run in {task.folder}"
    else:
        base = pretraining_of(task.teacher)
        if not base or len(open_for_pretraining(task.data)) >= FEW:
            return {}
        settings = of_pretraining(base, task.machine.processes, {})
        origin = "the teacher's pretraining, for half as many epochs"
        if base["encoder"] == "simclr_convnet":
            origin = f"students after a pretraining of simclr_convnet, {settings['epochs']:g} epochs"
    say(f"no recipe given: settings of {origin} (any flag of the optimizer or the batch turns this off)")
    return settings


def pretraining_of(run: Path) -> dict[str, Any]:
    """Return the settings of the pretraining that a run of a chain started from; empty if it is not found."""
    folder, settings = run_folder(run), saved_recipe(run_folder(run))
    for _ in range(LONGEST):
        start = settings.get("run") or settings.get("teacher")
        if start is None:
            return settings if {*LEARNING, "encoder", "epochs"} <= settings.keys() else {}
        for place in places_of_start(start, folder):
            try:
                folder, settings = run_folder(place), saved_recipe(run_folder(place))
            except Error:
                continue
            if settings:
                break
        else:
            return {}
    return {}
