"""An encoder's weights under the names of torchvision or timm."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from simclr.embed import load
from simclr.export import to_timm, to_torchvision


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the encoder of a run as a state dict that torchvision or timm load strictly.

    Refused where the architecture has no counterpart there, with the reason.
    """

    run: Path
    """run folder of the encoder"""
    to: Literal["torchvision", "timm"] = "timm"
    """whose names the tensors get"""
    out: Path | None = None
    """file to write, which must not exist; RUN/NAME.safetensors if not given"""
    allow_pad_difference: bool = False
    """accept that the stem's max-pool pads otherwise there, which changes the features of even sides"""
    allow_small_stem: bool = False
    """accept that the small-image stem needs the library's first layers exchanged"""

    def __call__(self) -> dict[str, Any]:
        convert = {"torchvision": to_torchvision, "timm": to_timm}[self.to]
        name, state = convert(
            load(self.run).network,
            allow_pad_difference=self.allow_pad_difference,
            allow_small_stem=self.allow_small_stem,
        )
        path = self.out or self.run / f"{self.to}-{name}.safetensors"
        if path.exists():
            raise ValueError(f"out: {path} exists already; name another file")
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
        print(f"{len(state)} tensors of {self.to}'s {name} -> {path}")
        return {"name": name, "tensors": len(state), "out": str(path)}
