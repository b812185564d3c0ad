"""Weights files of encoders, heads and classifiers."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from simclr.errors import RunError, SettingError
from simclr.models.card import Card
from simclr.models.head import ProjectionHead
from simclr.runs.files import write_atomically
from simclr.runs.reading import open_regular

PREFIXES = ("module.", "_orig_mod.", "_forward_module.")  # of DDP, torch.compile and Fabric


def save_encoder(
    folder: str | Path,
    encoder: nn.Module,
    head: nn.Module | None,
    card: Card,
    supervised: nn.Linear | None = None,
) -> None:
    """Write encoder, head, card and classifier to `folder`; each file is replaced as a whole."""
    folder = Path(folder)
    for module, described, what in ((head, card.head, "head"), (supervised, card.supervised, "supervised")):
        if (module is None) != (described is None):
            raise ValueError(f"card.{what} is {described}, which does not fit the {what} to be saved: {module}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("encoder", encoder), ("head", head), ("supervised", supervised)):
        path = folder / f"{name}.safetensors"
        if module is None:
            path.unlink(missing_ok=True)
            continue
        write_tensors(path, _plain_state(module))
    write_atomically(folder / "card.json", card.to_json())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replace a safetensors file as a whole, with the permissions of other new files, which the library does not
    give."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(save(tensors))
    os.replace(partial, path)


def load_encoder(folder: str | Path) -> tuple[nn.Module, ProjectionHead | None, Card]:
    """Return encoder and head of a folder, on the CPU in evaluation mode, and the card."""
    folder = Path(folder)
    card = Card.read(folder)
    encoder = _built(card.plan_encoder, card.build_encoder, folder / "encoder.safetensors")
    head = None if card.head is None else _built(card.build_head, card.build_head, folder / "head.safetensors")
    return encoder.eval(), head if head is None else head.eval(), card


def load_supervised(folder: str | Path) -> nn.Linear | None:
    """Return the classifier beside an encoder, on entry `card.supervised["input"]` of the head's activations, or
    None."""
    card = Card.read(folder)
    if card.supervised is None:
        return None
    return _built(card.build_supervised, card.build_supervised, Path(folder) / "supervised.safetensors")


def _built(plan: Callable[[], nn.Module], build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Return a network of a card with the weights in a file, whose tensors are compared with the plan of the network
    before any memory is taken: a few digits in a card can stand for any size."""
    try:
        with torch.device("meta"):
            planned = plan().state_dict()
        check_match(planned, _shapes(path), path)
        module = build()
    except (SettingError, RuntimeError, OverflowError, TypeError) as error:  # of values that are not of an architecture
        problem = f"does not describe a network ({' '.join(str(error).split())})"
        raise RunError(path.with_name("card.json"), problem) from None
    load_strictly(module, path)
    return module


def _shapes(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file without their values, on the meta device."""
    try:
        open_regular(path, RunError).close()
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(path, f"cannot be read: {' '.join(str(error).split())}") from None
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def load_strictly(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into `module`; raise RunError, with the names, unless all tensors match."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(path, f"cannot be read: {' '.join(str(error).split())}") from None
    check_match(module.state_dict(), tensors, path)
    module.load_state_dict(tensors)


def check_match(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise RunError with the names and shapes that differ between the tensors of a network and those of a file."""
    wrong = [
        f"{name} is {tuple(actual[name].shape)} not {tuple(expected[name].shape)}"
        for name in expected.keys() & actual.keys()
        if actual[name].shape != expected[name].shape
    ]
    lists = {
        "missing": expected.keys() - actual.keys(), "not of this network": actual.keys() - expected.keys(),
        "of another shape": wrong,
    }  # fmt: skip
    if any(lists.values()):
        matched = len(expected.keys() & actual.keys()) - len(wrong)
        differences = "; ".join(f"{what}: {_some(names)}" for what, names in lists.items() if names)
        raise RunError(where, f"{matched} of {len(expected)} tensors match the network; {differences}")


def _some(names) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _plain_state(module: nn.Module) -> dict[str, Tensor]:
    state = {}
    for name, tensor in module.state_dict().items():
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        state[name] = tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
    return state
