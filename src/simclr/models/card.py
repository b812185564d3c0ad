"""The files an encoder is kept in: `encoder.safetensors`, `head.safetensors` and `card.json` in one folder.

The weights hold nothing executable; the card says which network they fit and what to feed it. Reading is
strict: every tensor of the network must be in the file, and every tensor of the file in the network.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from simclr.run import write_atomically

from .encoder import create_encoder
from .head import ProjectionHead

FORMAT = 1
PREFIXES = ("module.", "_orig_mod.", "_forward_module.")  # of DDP, torch.compile and Fabric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What travels with the weights of an encoder, as stored in `card.json`."""

    encoder: Mapping[str, Any]
    """{"name": as in `create_encoder`, "options": its options}"""
    features: int
    """Length D of the representation h."""
    image_size: int
    """Side in pixels of the images the encoder was trained on."""
    preprocess: Mapping[str, Any]
    """{"size": pixels, "crop": fraction of the shorter side kept by the central crop}"""
    head: Mapping[str, Any] | None = None
    """`ProjectionHead.config()`, or None where no head was kept."""
    supervised: Mapping[str, Any] | None = None
    """{"classes": number of classes, "input": which entry of the head's `activations` it reads}, or None."""
    channels: int = 3
    input: str = "[0,1] RGB, no mean/std"
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where the weights come from: a recipe, a converted checkpoint."""
    version: str = dataclasses.field(default_factory=lambda: version("simclr-toolkit"))
    """Version of this package that wrote the card."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str | Path = "card") -> "Card":
        """Raises ValueError, naming `where`, for anything that is no card this version can read."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise ValueError(f"{where}: not a card of an encoder (it has no format number)")
        if content["format"] > FORMAT:
            raise ValueError(
                f"{where}: format {content['format']} was written by simclr {content.get('version', '(newer)')}; "
                f"this one reads up to {FORMAT}"
            )
        content.pop("format")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name in ("encoder", "features", "image_size", "preprocess") if name not in content}
        unknown = content.keys() - fields.keys()
        if required or unknown:
            raise ValueError(
                f"{where}: missing {', '.join(sorted(required)) or 'nothing'}; "
                f"unknown {', '.join(sorted(unknown)) or 'nothing'}"
            )
        if not isinstance(content["encoder"], dict) or "name" not in content["encoder"]:
            raise ValueError(f"{where}: encoder must be an object with a name and options")
        return cls(**content)

    @classmethod
    def read(cls, folder: str | Path) -> "Card":
        path = Path(folder) / "card.json"
        if not path.is_file():
            raise ValueError(f"{folder}: holds no card.json, so it is no folder of an encoder")
        return cls.from_json(path.read_text(encoding="utf-8"), path)

    def build_encoder(self) -> nn.Module:
        """The untrained network this card describes."""
        encoder = create_encoder(self.encoder["name"], self.image_size, self.encoder.get("options", {}))
        if encoder.num_features != self.features:
            raise ValueError(
                f"card: encoder {self.encoder['name']} gives {encoder.num_features} features, not {self.features}"
            )
        return encoder

    def build_head(self) -> ProjectionHead | None:
        return None if self.head is None else ProjectionHead(self.features, **self.head)

    def build_supervised(self) -> nn.Linear | None:
        if self.supervised is None:
            return None
        read = self.supervised.get("input", 0)
        inputs = self.features
        if read > 0:
            inputs = self.build_head().first(read).out_features
        return nn.Linear(inputs, self.supervised["classes"])


def save_encoder(
    folder: str | Path,
    encoder: nn.Module,
    head: nn.Module | None,
    card: Card,
    supervised: nn.Linear | None = None,
) -> None:
    """Write encoder, head and card to `folder`, each file replaced whole; no head, no `head.safetensors`."""
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
    """A safetensors file, replaced whole; readable for whom other new files are, as the library's own are not."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(save(tensors))
    os.replace(partial, path)


def load_encoder(folder: str | Path) -> tuple[nn.Module, ProjectionHead | None, Card]:
    """Encoder and head of a folder, on the CPU in evaluation mode, and the card. ValueError unless all fits."""
    card = Card.read(folder)
    encoder = card.build_encoder()
    load_strictly(encoder, Path(folder) / "encoder.safetensors")
    head = card.build_head()
    if head is not None:
        load_strictly(head, Path(folder) / "head.safetensors")
        head.eval()
    return encoder.eval(), head, card


def load_supervised(folder: str | Path) -> nn.Linear | None:
    """The classifier kept beside an encoder, reading entry `card.supervised["input"]` of the activations."""
    layer = Card.read(folder).build_supervised()
    if layer is not None:
        load_strictly(layer, Path(folder) / "supervised.safetensors")
    return layer


def load_strictly(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file; ValueError, with the names, unless 100 % of the tensors match."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    check_match(module.state_dict(), tensors, str(path))
    module.load_state_dict(tensors)


def check_match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError saying which names and shapes differ between a network's tensors and a file's."""
    wrong = [
        f"{name} is {tuple(found[name].shape)} not {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    lists = {
        "missing": expected.keys() - found.keys(), "not of this network": found.keys() - expected.keys(),
        "of another shape": wrong,
    }  # fmt: skip
    if any(lists.values()):
        matched = len(expected.keys() & found.keys()) - len(wrong)
        raise ValueError(
            f"{where}: {matched} of {len(expected)} tensors match; "
            + "; ".join(f"{what}: {_some(names)}" for what, names in lists.items() if names)
        )


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
