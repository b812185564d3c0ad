"""Model card: what an encoder is and how images must be prepared for it."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from simclr.models.encoder import create_encoder
from simclr.models.head import ProjectionHead

FORMAT = 1


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
