"""Settings of a pretraining without a recipe: those that are suggested for its images, and the flags that are given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simclr.data.specs import open_for_pretraining
from simclr.errors import SettingError
from simclr.models.encoder import create_encoder
from simclr.models.start import Start
from simclr.optim import peak_lr
from simclr.report.advice import SIZES, epochs_in, of_small_images, of_the_paper, side_advice, speed, suggest
from simclr.report.resources import kept_for_backward
from simclr.report.suggestions import Advice, nested
from simclr.runs.machine import Device
from simclr.runs.recipe import is_import_path, saved_recipe
from simclr.tasks.adaptation import say
from simclr.tasks.pretrain import Pretrain
from simclr.tasks.start import code_refused
from simclr.tasks.students import FEW
from simclr.tasks.suggest import compiles, measure

ON_CPU, ON_GPU = 0.5, 1.5  # float32 activations of a step, in parts of the memory; a GPU keeps them in bfloat16
FEWEST = 32  # images of a batch that is not reduced to fit in memory
SMALL = 64  # pixels of a view up to which the settings for small images are suggested


class Network(NamedTuple):
    """An encoder that the user has chosen."""

    build: Callable[[int], nn.Module]
    """returns the encoder for images of a size, in pixels"""
    channels: int = 3
    size: int | None = None
    """side of the images of its weights, pixels; None for random weights"""

    @classmethod
    def of(cls, start: Start) -> "Network":
        """Return the encoder of weights to start from, with images of at most 224 px if it takes them."""
        size = start.card.image_size
        return cls(start.build, start.card.channels, SIZES[-1] if size > SIZES[-1] and start.takes(SIZES[-1]) else size)

    def takes(self, size: int) -> bool:
        """Return whether there is such an encoder for images of `size` pixels."""
        try:
            self.build(size)
        except SettingError:
            return False
        return True


def settings_without_recipe(task: Pretrain, given: set[str]) -> dict[str, Any]:
    """Return the settings to use in place of the defaults of a run whose command line sets the names `given`.

    They are those of the run in `out` if there is one, otherwise those of `simclr suggest`, if there are fewer images
    than the defaults are made for, as far as they go together with the settings given.
    """
    is_run = isinstance(task.data, str) and (Path(task.data) / "recipe.yaml").is_file()  # for `simclr doctor RUN`
    if task.data is None or is_run:
        return {}
    recipe = task.folder / "recipe.yaml"
    if recipe.is_file() and not task.fresh:
        settings, origin = saved_recipe(task.folder), f"the run in {task.folder}"
        machine = settings.get("machine", {})
        kept = {"precision": machine.get("precision", "auto")}
        if machine.get("compile") and task.machine.kind == "cuda" and compiles():
            kept["compile"] = True
        settings = {name: value for name, value in settings.items() if name != "data"} | {"machine": kept}
        if is_import_path(settings.get("encoder")) and "encoder" not in given:
            raise code_refused(recipe, settings["encoder"])
    elif len(open_for_pretraining(task.data)) >= FEW:
        return {}
    elif task.channels > 3 or task.keep_levels:
        say(f"no recipe given: the paper's settings for ImageNet (no suggestions for {task.channels} channels); "
             "--config multispectral has settings for such images")  # fmt: skip
        return {}
    else:
        size = task.views.size if "views.size" in given else None
        settings = settings_without_trial(task.data, task.machine, network_of(task, given), size)
        origin = "`simclr suggest`"
        if task.machine.kind == "cpu":
            origin += ", about 15 minutes or one epoch; `simclr suggest --budget` for another time"
        settings = beside_flags(settings, task, given)
        if "lr" in given:
            rate = peak_lr(task.lr, batch := settings["batch"], scaling := settings["scaling"])
            origin += f"; lr {task.lr:g} is {rate:.3g} at batch {batch} ({settings['optimizer']}, {scaling} scaling)"
    if task.machine.recompute:  # which does not go together with compilation
        settings.get("machine", {}).pop("compile", None)
    say(f"no recipe given: settings of {origin}")
    return settings


def network_of(task: Pretrain, given: set[str]) -> Network | None:
    """Return the encoder that weights or the settings `given` decide; None without them."""
    if task.start is not None:
        return Network.of(task.start)
    if {name.partition(".")[0] for name in given} & {"encoder", "encoder_options"}:
        return Network(lambda size: create_encoder(task.encoder, size, task.encoder_options), task.channels)
    return None


def beside_flags(settings: dict[str, Any], task: Pretrain, given: set[str]) -> dict[str, Any]:
    """Return suggested settings as they are beside those that are `given`; raise SettingError for a missing learning
    rate if its meaning is another one."""
    for name in ("optimizer", "scaling"):
        if name in given and "lr" not in given and getattr(task, name) != settings[name]:
            allowed = f"given with {name} {getattr(task, name)}; the suggested one is for {settings[name]}"
            raise SettingError("lr", allowed, None)
    kept = dict(settings)
    if "epochs" in given:
        del kept["warmup_epochs"]
        kept["knn_every"] = max(1, round(task.epochs / 10))
    if "batch" in given and "micro_batch" in kept:
        kept["micro_batch"] = next(n for n in range(kept["micro_batch"], 0, -1) if task.batch % n == 0)
    if task.channels != 3:
        kept.pop("side", None)
    return kept


def settings_without_trial(
    data: Any, device: Device, network: Network | None = None, size: int | None = None
) -> dict[str, Any]:
    """Return the suggested settings from the images, the device and the number of cores, without a measurement, for a
    network and views of `size` pixels if these are chosen.

    Views have the size of the images of weights, on a CPU that of the suggested ones if these are smaller. Epochs on a
    CPU are those that fit by the operations of the network. The batch is one whose activations fit in memory.
    """
    facts = replace(measure(open_for_pretraining(data), torch.device(device.kind)), views=size)
    if network is not None or getattr(device, "precision", "auto") not in ("auto", "bf16"):
        facts = replace(facts, computes_bf16=False)  # bf16 has been measured with the suggested encoder
    advice = suggest(facts)
    if network is None:
        return nested(advice)
    is_cpu = facts.device == "cpu"
    if size is None:
        size = size_for(network, advice["views.size"].value, smaller=is_cpu)
    of_views = size <= SMALL  # those that are suggested for small images
    kept = {name: a for name, a in advice.items() if not name.startswith(("encoder", "image_size", "side"))
            and (of_views or not name.startswith("views."))}  # fmt: skip
    if not (is_cpu or of_views):
        of_small = {*of_small_images(1), "machine.compile", "log_every"}
        kept = {name: a for name, a in kept.items() if name not in of_small} | of_the_paper(advice["batch"].value)
    settings = nested(kept | side_advice(facts, size) | {"views.size": Advice(size, "")})
    operations, kept_bytes = cost(network, size)
    settings |= within_memory(settings["batch"], 2 * kept_bytes, (ON_CPU if is_cpu else ON_GPU) * facts.memory)
    if is_cpu:
        settings["epochs"] = min(settings["epochs"], epochs_in(facts, speed(facts) / operations))
        settings["warmup_epochs"] = settings["epochs"] / 20
        settings["knn_every"] = max(1, round(settings["epochs"] / 10))
    return settings


def size_for(network: Network, suggested: int, *, smaller: bool) -> int:
    """Return the side of the views of a network: that of the images of its weights, or the `suggested` one if it is
    `smaller` or there are no weights, else the next that the network takes."""
    if network.size is not None:
        return min(network.size, suggested) if smaller and network.size <= SMALL else network.size
    return next((size for size in (suggested, *SIZES) if size >= suggested and network.takes(size)), suggested)


def cost(network: Network, size: int) -> tuple[float, float]:
    """Return the multiplications and additions of the encoder's forward pass for one view, which are as many as the
    multiplications for two, and the bytes that it keeps of each view for the backward pass."""
    encoder, views = network.build(size).train(), torch.zeros(2, network.channels, size, size)
    with FlopCounterMode(display=False) as counter, kept_for_backward(encoder) as kept:
        encoder(views)
    return counter.get_total_flops() / len(views), sum(kept) / len(views)


def within_memory(batch: int, each: float, memory: float) -> dict[str, int]:
    """Return settings of a batch of at most `batch` images, of `each` bytes, that fits in `memory`: a smaller batch, of
    at least 32, and a micro-batch if that does not fit."""
    held = batch
    while held > 2 and held * each > memory:
        held //= 2
    whole = held * max(1, min(batch, FEWEST) // held)
    return {"batch": whole} | ({"micro_batch": held} if held < whole else {})
