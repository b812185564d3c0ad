"""Options of encoders: those of an architecture, and no others, since a card or a recipe may be anybody's."""

import contextlib
import dataclasses
import inspect
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simclr.errors import SettingError
from simclr.models.resnet import DEPTHS, resnet
from simclr.runs.recipe import is_import_path

OWN = (*(name for name in inspect.signature(resnet).parameters if name not in ("depth", "image_size", "channels")),
       "in_chans")  # fmt: skip
ENCODERS = f"simclr_resnet{min(DEPTHS)} ... {max(DEPTHS)}, simclr_convnet or a model of timm"
COMMON = ("act_layer", "bn_eps", "bn_momentum", "drop_path_rate", "drop_rate", "global_pool", "img_size", "in_chans",
          "norm_layer", "output_stride")  # fmt: skip
NORMALISATION = ("mean", "std")  # of every encoder: one number for each channel
NEVER = re.compile(r"pretrain|checkpoint|url|hub|cache|file|cfg|custom|weights|kwargs|state_dict|^num_classes$")
LARGEST, LARGEST_OWN, LONGEST = 100_000, 16, 100  # number, also of our ResNets (papers: width 4), and text or list
TENSORS = 20_000  # created while a network is built; the deepest ones have some thousands


def is_own(name: str) -> bool:
    """Return whether a name is that of one of SimCLR's ResNets."""
    return name.removeprefix("simclr_resnet") in map(str, DEPTHS)


def refused_option(name: str, options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return an option that the architecture `name` does not have or whose value is not a number, a short text or a
    list of those, and the reason; None if there is none."""
    if problem := _wrong_normalisation(options):
        return "mean", problem
    allowed, largest = (OWN, LARGEST_OWN) if is_own(name) else (architecture_options(name), LARGEST)
    for option, value in options.items():
        if option in NORMALISATION:
            continue
        if (option not in allowed or NEVER.search(option)) and not is_import_path(name):
            hint = f"; allowed are {', '.join(OWN)}" if is_own(name) else ""
            remedy = "--encoder_options '{}' removes the options of a recipe"
            return str(option), f"{name} has no option {option}{hint}; {remedy}"
        if not _is_plain(value, LARGEST if option == "in_chans" else largest):
            return option, f"{option} must be a number of at most {largest:,}, a short text, true, false or a list"
    return None


def _wrong_normalisation(options: Mapping[str, Any]) -> str | None:
    values = [options.get(name) for name in NORMALISATION]
    if values == [None, None]:
        return None
    if not all(isinstance(value, list | tuple) and _is_plain(value, LARGEST) for value in values):
        return "mean and std must both be given, each a list of one number for each channel"
    numbers = all(isinstance(x, int | float) for value in values for x in value)
    if not numbers or {len(value) for value in values} != {options.get("in_chans", 3)} or min(values[1]) <= 0:
        return "mean and std must have as many numbers as the images have channels, those of std above 0"
    return None


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise SettingError that names the option unless all are options of the architecture, if there is one of that
    name."""
    if not is_own(name) and not is_import_path(name) and not timm.is_model(name):
        return
    if refused := refused_option(name, options):
        raise SettingError(f"encoder_options.{refused[0]}", f"an option of {name}", options[refused[0]], refused[1])


def architecture_options(name: str) -> set[str]:
    """Return the parameters of the networks in the module of timm that has the architecture `name`, and of their
    descriptions."""
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(name):
        return set()
    names = set(COMMON)
    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    for kind in vars(module).values():
        if not inspect.isclass(kind):
            continue
        if issubclass(kind, nn.Module) and hasattr(kind, "forward_features"):
            names |= set(inspect.signature(kind).parameters)
        elif dataclasses.is_dataclass(kind):
            names |= {field.name for field in dataclasses.fields(kind)}
    return names


def _is_plain(value: Any, largest: int, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return depth < 3 and len(value) <= LONGEST and all(_is_plain(item, largest, depth + 1) for item in value)
    if isinstance(value, str):
        return bool(re.fullmatch(r"[\w.+-]*", value)) and len(value) <= LONGEST
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= largest
    return value is None


class TooLarge(Exception):
    """A network needs more memory than it may take."""


class _Limit(TorchDispatchMode):
    """Refusal of new tensors, before memory is taken, once there are too many or too large ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.left, self.tensors = size, size, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        size = args[0] if args and isinstance(args[0], list | tuple) else None
        if size is not None and all(isinstance(side, int) for side in size):
            self.left -= math.prod(size) * (kwargs or {}).get("dtype", torch.float32).itemsize
            self.tensors += 1
            if self.left < 0 or self.tensors > TENSORS:
                raise TooLarge(f"the network needs more than {self.size / 1e6:,.0f} MB")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def limited_memory(size: int | None = None) -> Iterator[None]:
    """Raise TooLarge if the tensors created in this context have more than `size` bytes, by default a quarter of the
    machine's memory: training holds gradients and momentum too."""
    with _Limit(size if size is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4):
        yield
