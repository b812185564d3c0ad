"""A run's encoder as a file that other programs load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from simclr.models.export import save_onnx, save_pt2, to_timm, to_torchvision
from simclr.models.layers import read_layer
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.models.weights import write_tensors
from simclr.runs.files import require_new_file


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the encoder of a run for use without this package.

    pt2 is a whole program: `torch.export.load(FILE).module()` gives it in any PyTorch; onnx is one for other runtimes.
    Both take images (B, 3, S, S) in [0, 1] as the card says, which they hold. timm and torchvision are weights under
    the names of that library, refused with the reason where it has no such network.
    """

    command: ClassVar[str] = "export"

    run: Path
    """run folder of the encoder"""
    to: Literal["pt2", "onnx", "timm", "torchvision"] = "pt2"
    """what is written"""
    layer: str = "h"
    """pt2 and onnx: what the program gives: h, z, head.1 and on, block_group1 to 4, or scores, a fine-tuned run's
    classifier"""
    out: Path | None = None
    """file to write, which must not exist; RUN/LAYER.pt2 or .onnx, or RUN/LIBRARY-NAME.safetensors if not given"""
    allow_pad_difference: bool = False
    """torchvision and timm: accept that the stem's max-pool pads otherwise, which changes the features of even sides"""
    allow_small_stem: bool = False
    """torchvision and timm: accept that the small-image stem needs the library's first layers exchanged"""

    def __call__(self) -> dict[str, Any]:
        encoder = load(self.run)
        return self.program(encoder) if self.to in ("pt2", "onnx") else self.weights(encoder)

    def program(self, encoder: Encoder) -> dict[str, Any]:
        """The network up to `layer`, checked against itself before it is kept."""
        network = self.network(encoder)
        path = require_new_file(self.out or self.run / f"{self.layer}.{self.to}")
        size = encoder.card.image_size
        difference = {"pt2": save_pt2, "onnx": save_onnx}[self.to](network, size, path, encoder.card.to_json())
        print(f"images (B, 3, {size}, {size}) in [0, 1] -> {self.layer}; differs by {difference:.1e} at most")
        print(f"wrote {path}")
        return {"layer": self.layer, "difference": difference, "out": str(path)}

    def network(self, encoder: Encoder) -> nn.Module:
        """What the program computes."""
        if self.layer == "scores":
            return load_classifier(self.run)
        return read_layer(encoder.network, encoder.head, self.layer).eval()

    def weights(self, encoder: Encoder) -> dict[str, Any]:
        """The encoder's tensors under another library's names."""
        name = encoder.card.encoder["name"]
        if self.to == "timm" and not name.startswith("simclr_"):  # it came from there
            state = encoder.network.state_dict()
        else:
            convert = {"torchvision": to_torchvision, "timm": to_timm}[self.to]
            name, state = convert(
                encoder.network,
                allow_pad_difference=self.allow_pad_difference,
                allow_small_stem=self.allow_small_stem,
            )
        path = require_new_file(self.out or self.run / f"{self.to}-{name}.safetensors")
        write_tensors(path, {key: tensor.contiguous() for key, tensor in state.items()})
        print(f"{len(state)} tensors of {self.to}'s {name}\nwrote {path}")
        return {"name": name, "tensors": len(state), "out": str(path)}
