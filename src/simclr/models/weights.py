"""Weights files of encoders, heads and classifiers."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from simclr.errors import RunError, SettingError
from simclr.models.card import MAX_CARD_BYTES, Card
from simclr.models.head import ProjectionHead
from simclr.models.options import TooLarge, limited_memory
from simclr.models.toolkits import WRAPPERS
from simclr.runs.checkpoint import content_hash
from simclr.runs.files import replacing, require_folder_path, write_atomically
from simclr.runs.reading import open_regular, read_bytes
from simclr.runs.results import weights_path

METADATA = "simclr"  # key of what a weights file says of itself; one key, since the order of several is random
FILES = ("encoder.safetensors", "head.safetensors", "supervised.safetensors")
MARGIN = 1 << 28  # bytes that a network may take beyond four times its weights file: tables, masks of attention


def save_encoder(
    folder: str | Path,
    encoder: nn.Module,
    head: nn.Module | None,
    card: Card,
    supervised: nn.Linear | None = None,
) -> None:
    """Write encoder, head, card and classifier to `folder`; each file is replaced as a whole.

    Each weights file says the hash of its tensors and the run that it is of, and, beside the encoder, the hash of the
    encoder it was trained with.
    """
    folder = Path(folder)
    for module, described, what in ((head, card.head, "head"), (supervised, card.supervised, "supervised")):
        if (module is None) != (described is None):
            raise ValueError(f"card.{what} is {described}, which does not fit the {what} to be saved: {module}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _plain_state(encoder)
    origin = {"run": json.loads(json.dumps(dict(card.source))), "encoder": _hash(tensors)}
    for name, module in (("encoder", encoder), ("head", head), ("supervised", supervised)):
        path = folder / f"{name}.safetensors"
        if module is None:
            path.unlink(missing_ok=True)
            continue
        write_tensors(path, tensors if module is encoder else _plain_state(module), origin)
    write_atomically(folder / "card.json", card.to_json())


def save_classifier(folder: Path, encoder: Path, card: Card, classifier: nn.Linear) -> None:
    """Write a classifier on the encoder in another folder to `folder`, which is new, with `card`, which describes both.

    The files of the encoder are linked, or copied where the file system has no links, so that the folder stays complete
    and consistent if the encoder is replaced.
    """
    folder.mkdir(parents=True)
    for name in FILES[:2]:
        if (encoder / name).is_file():
            with contextlib.suppress(OSError):
                os.link(encoder / name, folder / name)
            if not (folder / name).exists():
                shutil.copyfile(encoder / name, folder / name)
    origin = read_origin(folder / FILES[0])
    kept = {name: origin[name] for name in ("run", "encoder") if name in origin}
    write_tensors(folder / FILES[2], _plain_state(classifier), kept)
    write_atomically(folder / "card.json", card.to_json())


def require_classifier_folder(folder: Path, run: str | Path) -> Path:
    """Return `folder` if `simclr linear` can write a classifier on the encoder of `run` there: it is new or empty, or
    holds an older classifier of that command, which is moved with all other files that lie beside it."""
    place, encoder = require_folder_path(folder).resolve(), weights_path(run).parent.resolve()
    is_above = place in (encoder, *encoder.parents)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if is_above or (names and not _holds_linear_classifier(folder)):
        content = f"the encoder {run}" if is_above else f"{_some(names)}, and no classifier of simclr linear"
        raise SettingError("out", "a path whose name without suffix is free for the classifier", str(folder),
                           f"The folder contains {content}; choose another --out")  # fmt: skip
    return folder


def _holds_linear_classifier(folder: Path) -> bool:
    """Return whether `simclr linear` has written a folder: its classifier has names of classes, which those of official
    checkpoints lack, and no recipe, which fine-tuned and distilled runs have."""
    try:
        card = json.loads(read_bytes(folder / "card.json", MAX_CARD_BYTES, RunError))
    except (OSError, RunError, ValueError, RecursionError):
        return False
    supervised = card.get("supervised") if isinstance(card, dict) else None
    return isinstance(supervised, dict) and "names" in supervised and not (folder / "recipe.yaml").exists()


def write_tensors(path: Path, tensors: dict[str, Tensor], origin: Mapping[str, Any] | None = None) -> None:
    """Replace a safetensors file as a whole, with the permissions of other new files, which the library does not
    give."""
    content = {"sha256": _hash(tensors), **(origin or {})}
    with replacing(path) as file:
        file.write(save(tensors, {METADATA: json.dumps(content, sort_keys=True)}))


def load_encoder(folder: str | Path, encoder: str | None = None) -> tuple[nn.Module, ProjectionHead | None, Card]:
    """Return encoder and head of a folder, on the CPU in evaluation mode, and the card; `encoder` is the import path
    that the user has named, if any."""
    folder = Path(folder)
    card = Card.read(folder, encoder)
    network = _built(card, card.plan_encoder, card.build_encoder, folder / "encoder.safetensors")
    head = None if card.head is None else _built(card, card.build_head, card.build_head, folder / "head.safetensors")
    return network.eval(), head if head is None else head.eval(), card


def load_supervised(folder: str | Path, encoder: str | None = None) -> nn.Linear | None:
    """Return the classifier beside an encoder, on entry `card.supervised["input"]` of the head's activations, or
    None."""
    card = Card.read(folder, encoder)
    if card.supervised is None:
        return None
    return _built(card, card.build_supervised, card.build_supervised, Path(folder) / "supervised.safetensors")


def _built(card: Card, plan: Callable[[], nn.Module], build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Return a network of a card with the weights in a file, whose tensors are compared with the plan of the network
    before any memory is taken: a few digits in a card can stand for any size."""
    shapes = _shapes(path)
    try:
        with limited_memory(MARGIN + 4 * path.stat().st_size):
            try:
                with torch.device("meta"):
                    planned = plan().state_dict()
            except (SettingError, RuntimeError):  # of a network that no plan can be made of, or of none
                planned = None
            if planned is not None:
                check_match(planned, shapes, path)
            module = build()
    except RunError as error:
        raise RunError(path if error.path == str(path) else path.with_name("card.json"), error.problem) from None
    except (SettingError, TooLarge, RuntimeError, OverflowError, TypeError) as error:  # of no architecture
        problem = f"does not describe a network ({' '.join(str(error).split())})"
        raise RunError(path.with_name("card.json"), problem) from None
    origin = load_strictly(module, path)
    if origin.get("run", card.source) != card.source:
        raise RunError(path, "belongs to another run than card.json", names=("run",))
    expected = read_origin(path.with_name("encoder.safetensors")).get("encoder")
    if expected != origin.get("encoder", expected):
        raise RunError(path, "belongs to another encoder than encoder.safetensors", names=("encoder",))
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


def load_strictly(module: nn.Module, path: Path) -> dict[str, Any]:
    """Load a safetensors file into `module`; raise RunError, with the names, unless all tensors match and are those
    that were written. Return what the file says of itself; files of version 0.1 say nothing."""
    try:
        with safe_open(path, "pt") as file:
            origin, tensors = _origin_in(file, path), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise RunError(path, f"cannot be read: {' '.join(str(error).split())}") from None
    check_match(module.state_dict(), tensors, path)
    if origin and origin.get("sha256") != _hash(tensors):
        raise RunError(path, "is damaged: its tensors are not those that were written", names=("sha256",))
    module.load_state_dict(tensors)
    return origin


def read_origin(path: Path) -> dict[str, Any]:
    """Return what a weights file says of itself; empty if another program wrote it."""
    with safe_open(path, "pt") as file:
        return _origin_in(file, path)


def _origin_in(file: Any, path: Path) -> dict[str, Any]:
    try:
        content = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise RunError(path, "is damaged: what it says of itself cannot be read", names=(METADATA,))


def _hash(tensors: Mapping[str, Tensor]) -> str:
    return content_hash(dict(sorted(tensors.items())))


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
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        state[name] = tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
    return state
