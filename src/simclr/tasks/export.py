"""Export of an encoder to a file that other programs load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from simclr.models.export import save_onnx, save_pt2, to_timm, to_torchvision
from simclr.models.layers import read_layer
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.models.weights import write_tensors
from simclr.runs.files import require_new_file
from simclr.runs.results import run_folder
from simclr.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export the encoder of a run for use without this package.

    pt2 is a program that `torch.export.load(FILE).module()` loads in any PyTorch; onnx is a program for other runtimes.
    Both take images (B, 3, S, S) in [0, 1] as the card says, which they contain. timm and torchvision are weights with
    the names of that library; an encoder that the library does not have is refused.
    """

    command: ClassVar[str] = "export"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME:FILE with local weights"""
    to: Literal["pt2", "onnx", "timm", "torchvision"] = "pt2"
    """format of the file"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4"""
    out: Path | None = None
    """file to write; RUN/LAYER.pt2 or .onnx, or RUN/LIBRARY-NAME.safetensors, if not given. With pt2 and onnx, the
    layer may also be scores, the classifier of a fine-tuned run"""
    overwrite: bool = False
    """replacement of existing files"""
    allow_pad_difference: bool = False
    """torchvision and timm: accept that the padding of the stem's max-pool differs, which changes features of even
    sides"""
    allow_small_stem: bool = False
    """torchvision and timm: accept that the small-image stem requires replacing the library's first layers"""

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self) -> dict[str, Any]:
        encoder = load(self.run)
        return self.program(encoder) if self.to in ("pt2", "onnx") else self.weights(encoder)

    def program(self, encoder: Encoder) -> dict[str, Any]:
        """Write the network up to `layer` as a program, after comparing its output with that of the network."""
        network = self.network(encoder)
        path = require_new_file(self.out or run_folder(self.run) / f"{self.layer}.{self.to}", self.overwrite)
        size, channels = encoder.card.image_size, encoder.card.channels
        save = {"pt2": save_pt2, "onnx": save_onnx}[self.to]
        difference = save(network, size, path, encoder.card.to_json(), channels)
        print(f"images (B, {channels}, {size}, {size}) in [0, 1] -> {self.layer}; maximum difference {difference:.1e}")
        print(f"wrote {path}")
        return {"layer": self.layer, "difference": difference, "out": str(path)}

    def network(self, encoder: Encoder) -> nn.Module:
        """Return the network of the program."""
        if self.layer == "scores":
            return load_classifier(self.run)
        return read_layer(encoder.network, encoder.head, self.layer).eval()

    def weights(self, encoder: Encoder) -> dict[str, Any]:
        """Write the tensors of the encoder with another library's names."""
        name = encoder.card.encoder["name"]
        if self.to == "timm" and not name.startswith("simclr_"):  # a model of timm
            state = encoder.network.state_dict()
        else:
            convert = {"torchvision": to_torchvision, "timm": to_timm}[self.to]
            name, state = convert(
                encoder.network,
                allow_pad_difference=self.allow_pad_difference,
                allow_small_stem=self.allow_small_stem,
            )
        path = require_new_file(self.out or run_folder(self.run) / f"{self.to}-{name}.safetensors", self.overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {key: tensor.contiguous() for key, tensor in state.items()})
        print(f"{len(state)} tensors of {self.to}'s {name}")
        if encoder.card.encoder.get("options", {}).get("mean") is not None:
            print("of images normalised by mean and std, which the weights do not contain: see card.json")
        print(f"wrote {path}")
        return {"name": name, "tensors": len(state), "out": str(path)}
