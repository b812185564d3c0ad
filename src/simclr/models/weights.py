"""Weights files of encoders, heads and classifiers."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from simclr.errors import RunError
from simclr.models.card import Card
from simclr.models.head import ProjectionHead
from simclr.runs.files import write_atomically

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
    card = Card.read(folder)
    encoder = card.build_encoder()
    load_strictly(encoder, Path(folder) / "encoder.safetensors")
    head = card.build_head()
    if head is not None:
        load_strictly(head, Path(folder) / "head.safetensors")
        head.eval()
    return encoder.eval(), head, card


def load_supervised(folder: str | Path) -> nn.Linear | None:
    """Return the classifier beside an encoder, on entry `card.supervised["input"]` of the head's activations, or
    None."""
    layer = Card.read(folder).build_supervised()
    if layer is not None:
        load_strictly(layer, Path(folder) / "supervised.safetensors")
    return layer


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
