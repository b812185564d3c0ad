"""Model card: the architecture of an encoder and the preprocessing of its images."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from simclr.errors import RunError
from simclr.models.encoder import create_encoder
from simclr.models.head import ProjectionHead

FORMAT = 1


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
    """{"size": pixels, "crop": side of the central crop as a fraction of the shorter side}"""
    head: Mapping[str, Any] | None = None
    """`ProjectionHead.config()`, or None without a head"""
    supervised: Mapping[str, Any] | None = None
    """{"classes": number of classes, "input": entry of the head's `activations` that is classified}, or None"""
    channels: int = 3
    """number of channels of the images"""
    input: str = "[0,1] RGB, no mean/std"
    """format of the images, for people"""
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """origin of the weights: a training task or a converted checkpoint"""
    version: str = dataclasses.field(default_factory=lambda: version("simclr-toolkit"))
    """version of this package that wrote the card"""

    def to_json(self) -> str:
        """Return the content of `card.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str | Path = "card") -> "Card":
        """Return the card in the content of a file, `where`; raise RunError unless this version can read it."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
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
        if not isinstance(content["encoder"], dict) or "name" not in content["encoder"]:
            raise RunError(where, "must have an encoder with a name and options")
        return cls(**content)

    @classmethod
    def read(cls, folder: str | Path) -> "Card":
        """Return the card in a folder."""
        path = Path(folder) / "card.json"
        if not path.is_file():
            raise RunError(folder, "contains no card.json", "Name the folder of a finished run")
        return cls.from_json(path.read_text(encoding="utf-8", errors="replace"), path)

    def build_encoder(self) -> nn.Module:
        """Return the network that this card describes, with random weights."""
        encoder = create_encoder(self.encoder["name"], self.image_size, self.encoder.get("options", {}))
        if encoder.num_features != self.features:
            problem = f"says {self.features} features, but {self.encoder['name']} has {encoder.num_features}"
            raise RunError("card.json", problem)
        return encoder

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
