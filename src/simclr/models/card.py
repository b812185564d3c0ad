"""Model card: the architecture of an encoder and the preprocessing of its images."""

import dataclasses
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simclr.errors import RunError
from simclr.models.encoder import create_encoder
from simclr.models.head import ProjectionHead
from simclr.models.options import refused_option
from simclr.runs.reading import read_bytes
from simclr.runs.recipe import is_import_path

FORMAT = 1
MAX_CARD_BYTES = 16 << 20  # cards have 1 kB, with the names of a million classes more
MAX_SIDE = 8192  # pixels of an image
MAX_WIDTH = 1 << 20  # of a layer: features, hidden units, classes, and numbers among the options of an encoder
MAX_LAYERS = 1000  # of a head, and of an encoder's options that count layers; building them takes about 5 ms each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """Description of an encoder that is stored beside its weights, in `card.json`."""

    encoder: Mapping[str, Any]
    """{"name": name for `create_encoder`, "options": its options}"""
    features: int
    """length D of the representation h"""
    image_size: int
    """side of the images that the encoder was trained on, pixels"""
    preprocess: Mapping[str, Any]
    """{"size": pixels, "crop": side of the central crop as a fraction of the shorter side}, and, unless images are
    8-bit RGB, "low" and "high", the stored values of each channel that become 0 and 1"""
    head: Mapping[str, Any] | None = None
    """`ProjectionHead.config()`, or None without a head"""
    supervised: Mapping[str, Any] | None = None
    """{"classes": number of classes, "input": entry of the head's `activations` that is classified, "names": those of
    the classes, "multilabel": true if an image can have several of them}, or None"""
    channels: int = 3
    """number of channels of the images"""
    input: str = ""
    """format of the images, for people"""
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """origin of the weights: a training task or a converted checkpoint"""
    version: str = dataclasses.field(default_factory=lambda: version("simclr-toolkit"))
    """version of this package that wrote the card"""

    def __post_init__(self) -> None:
        if not self.input:
            normalised = (self.encoder.get("options") or {}).get("mean") is not None
            text = "normalised by mean and std inside the network" if normalised else "no mean/std"
            colours = f"{self.channels} channels as stored" if self.preprocess.get("low") else "RGB"
            object.__setattr__(self, "input", f"[0,1] {colours}, {text}")

    def to_json(self) -> str:
        """Return the content of `card.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str | Path = "card", encoder: str | None = None) -> "Card":
        """Return the card in the content of a file, `where`; raise RunError unless this version can read it.

        A card is anybody's, so an import path in it is refused unless it is `encoder`, which the user has named.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunError(where, f"is not JSON: {error}") from None
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise RunError(where, "is not the card of an encoder (it has no format number)")
        if content["format"] > FORMAT:
            writer = content.get("version", "(newer)")
            problem = f"has format {content['format']} of simclr {writer}; this version reads formats up to {FORMAT}"
            raise RunError(where, problem)
        content.pop("format")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name in ("encoder", "features", "image_size", "preprocess") if name not in content}
        unknown = content.keys() - fields.keys()
        if required or unknown:
            missing, other = (", ".join(sorted(names)) or "none" for names in (required, unknown))
            raise RunError(where, f"has missing fields ({missing}) or unknown fields ({other})")
        if not isinstance(content["encoder"], dict) or not isinstance(content["encoder"].get("name"), str):
            raise RunError(where, "must have an encoder with a name and options")
        _check_values(content, where)
        if is_import_path(name := content["encoder"]["name"]) and name != encoder:
            problem = f"names an encoder by import path, {name}, which is code and runs only if you name it too"
            raise RunError(where, problem, f"Write {name}:RUN in place of RUN, or --encoder {name}", ("encoder",))
        if refused := refused_option(name, content["encoder"].get("options") or {}):
            raise RunError(where, f"names an encoder that cannot be built: {refused[1]}", names=(refused[0],))
        return cls(**content)

    @classmethod
    def read(cls, folder: str | Path, encoder: str | None = None) -> "Card":
        """Return the card in a folder; see `from_json`."""
        path = Path(folder) / "card.json"
        if not path.is_file():
            raise RunError(folder, "contains no card.json", "Name the folder of a finished run")
        return cls.from_json(read_bytes(path, MAX_CARD_BYTES, RunError).decode(errors="replace"), path, encoder)

    def build_encoder(self) -> nn.Module:
        """Return the network that this card describes, with random weights."""
        return self._create(self.features)

    def plan_encoder(self) -> nn.Module:
        """Return the network without memory for its weights, on the meta device."""
        with torch.device("meta"):
            encoder = self._create(None)
        if encoder.num_features != self.features:
            problem = f"says {self.features} features, but {self.encoder['name']} has {encoder.num_features}"
            raise RunError("card.json", problem)
        return encoder

    def _create(self, features: int | None) -> nn.Module:
        return create_encoder(self.encoder["name"], self.image_size, self.encoder.get("options") or {}, features)

    def build_head(self) -> ProjectionHead | None:
        """Return the projection head with random weights, None if there is none."""
        return None if self.head is None else ProjectionHead(self.features, **self.head)

    def build_supervised(self) -> nn.Linear | None:
        """Return the classifier with random weights, None if there is none."""
        if self.supervised is None:
            return None
        read = self.supervised.get("input", 0)
        inputs = self.features
        if read > 0:
            inputs = self.build_head().first(read).out_features
        return nn.Linear(inputs, self.supervised["classes"])


def _check_values(content: Mapping[str, Any], where: str | Path) -> None:
    """Raise RunError unless the values of a card are of the right kind and of a plausible size."""

    def require(name: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise RunError(where, f"{name} must be {allowed}", names=(name,))

    def is_number(value: Any, most: int, kinds: type | tuple = int, least: int = 0) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most

    require("features", is_number(content["features"], MAX_WIDTH, least=1), f"an integer of 1 to {MAX_WIDTH:,}")
    require("image_size", is_number(content["image_size"], MAX_SIDE, least=1), f"an integer of 1 to {MAX_SIDE:,}")
    options = content["encoder"].get("options") or {}
    require("encoder.options", isinstance(options, dict), "a mapping")
    for name, value in options.items():
        most = MAX_LAYERS if "depth" in name or "layers" in name or "blocks" in name else MAX_WIDTH
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float):
                valid = isinstance(number, bool) or -most <= number <= most
                require(f"encoder.options.{name}", valid, f"of at most {most:,}")
    require("channels", is_number(content.get("channels", 3), MAX_SIDE, least=1), f"an integer of 1 to {MAX_SIDE:,}")
    for name in ("input", "version"):
        require(name, isinstance(content.get(name, ""), str), "a text")
    require("source", isinstance(content.get("source", {}), dict), "a mapping")
    preprocess = content["preprocess"]
    require("preprocess", isinstance(preprocess, dict), "a mapping")
    size, crop = preprocess.get("size"), preprocess.get("crop")
    require("preprocess.size", is_number(size, MAX_SIDE, least=1), f"an integer of 1 to {MAX_SIDE:,}")
    require("preprocess.crop", is_number(crop, 1, (int, float)) and crop > 0, "above 0 and at most 1")
    low, high = (preprocess.get(name, []) for name in ("low", "high"))
    channels, given = content.get("channels", 3), (options.get("in_chans", 3),)
    for name, values in (("low", low), ("high", high)):
        plain = isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        require(f"preprocess.{name}", plain, "a list of numbers")
    fits = len(low) == len(high) == channels if low or high else channels == 3
    require("preprocess.low", fits and all(a < b for a, b in zip(low, high, strict=True)),
            f"below preprocess.high, one number for each of {channels} channels")  # fmt: skip
    is_code = is_import_path(content["encoder"]["name"])
    require("channels", is_code or given == (channels,), f"those of the encoder's images ({given[0]})")
    sizes = {"head": ("layers", "out_features", "hidden", "kept"), "supervised": ("classes", "input")}
    for part, extra in (("head", {"norm"}), ("supervised", {"names", "multilabel"})):
        values, names = content.get(part), sizes[part]
        require(part, values is None or (isinstance(values, dict) and set(values) - extra <= set(names)), f"of {names}")
        for name, number in (values or {}).items():
            if name in extra:
                continue
            least, most = (0, MAX_LAYERS) if name in ("layers", "kept", "input") else (1, MAX_WIDTH)
            require(f"{part}.{name}", is_number(number, most, least=least), f"an integer of {least} to {most:,}")
    require("head.norm", isinstance((content.get("head") or {}).get("norm", True), bool), "true or false")
    supervised = content.get("supervised")
    require("supervised.multilabel", isinstance((supervised or {}).get("multilabel", False), bool), "true or false")
    require("supervised", supervised is None or "classes" in supervised, "with classes")
    if supervised and supervised.get("input", 0):
        kept = (content.get("head") or {}).get("kept", (content.get("head") or {}).get("layers", 0))
        require("supervised.input", supervised["input"] <= kept, f"at most {kept}, the number of layers of the head")
