"""`simclr convert`: an official TensorFlow checkpoint to a folder this package reads."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from simclr.models.official.convert import Converted, convert
from simclr.models.weights import save_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert an official SimCLR or SimCLRv2 checkpoint, without TensorFlow; all of it or nothing."""

    command: ClassVar[str] = "convert"

    checkpoint: Path
    """folder, SavedModel, hub module, or path of a checkpoint without its `.index`"""
    out: Path
    """folder to make: encoder.safetensors, head.safetensors, card.json"""
    weights: Literal["model", "ema"] = "model"
    """the trained variables, or the moving averages v2's TensorFlow 1 checkpoints hold beside them"""
    supervised_input: int = 0
    """layer of the head the classifier reads; the official ft_proj_selector"""
    image_size: int | None = None
    """pixels, for the card; default 32 with the small stem, else 224"""
    verify: Path | None = None
    """npz of activations to reproduce: `images` (N, H, W, 3), float32 in [0, 1] or uint8, `final_avg_pool` (N, D)
    and, if wanted, `proj_head_output` and `logits_sup`, as the official model gives them in inference"""
    tolerance: float = 1e-4
    """largest difference allowed by `verify`, as a fraction of the largest activation"""

    def __post_init__(self):
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"out={self.out}: exists; name a folder that is new or empty")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size={self.image_size}: must be at least 1 pixel")

    def __call__(self) -> dict[str, float | int]:
        """Write the folder; returns the numbers of tensors placed and ignored and the differences measured."""
        converted = convert(self.checkpoint, self.weights, self.supervised_input, self.image_size)
        differences = self._verified(converted)
        partial = self.out.with_name(f"{self.out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        save_encoder(partial, converted.encoder, converted.head, converted.card, converted.supervised)
        os.replace(partial, self.out)
        self._report(converted, differences)
        return {
            "placed": sum(converted.placed.values()),
            "ignored": len(converted.ignored),
            **{f"difference/{name}": difference for name, difference in differences.items()},
        }

    def _verified(self, converted: Converted) -> dict[str, float]:
        if self.verify is None:
            return {}
        expected = _load(self.verify)
        found = activations(converted, images_of(expected, self.verify))
        differences = {}
        for name in ("final_avg_pool", "proj_head_output", "logits_sup"):
            if name not in expected:
                continue
            if name not in found:
                raise ValueError(f"verify={self.verify}: has {name}, but the checkpoint holds nothing that gives it")
            target = torch.from_numpy(expected[name])
            if target.shape != found[name].shape:
                raise ValueError(
                    f"verify={self.verify}: {name} is {tuple(target.shape)}, the network gives "
                    f"{tuple(found[name].shape)}"
                )
            difference = float((found[name] - target).abs().max() / target.abs().max().clamp_min(1e-12))
            if not difference <= self.tolerance:
                raise ValueError(
                    f"verify={self.verify}: {name} differs by {difference:.2g} of its largest value, "
                    f"allowed is {self.tolerance:.2g}; nothing was written"
                )
            differences[name] = difference
        return differences

    def _report(self, converted: Converted, differences: Mapping[str, float]) -> None:
        options = " ".join(f"{name}={value}" for name, value in converted.card.encoder["options"].items())
        parts = ", ".join(f"{what} {count}" for what, count in converted.placed.items())
        print(f"{converted.card.encoder['name']} {options}")
        print(f"placed all {sum(converted.placed.values())} variables: {parts}")
        print(f"ignored {len(converted.ignored)} of the training state: {_grouped(converted.ignored)}")
        for name, difference in differences.items():
            print(f"{name}: largest difference {difference:.2g} of the largest value")
        print(f"wrote {self.out}")


def images_of(arrays: Mapping[str, np.ndarray], where: Path) -> Tensor:
    """The images of a verification file as the network takes them, (N, 3, H, W) in [0, 1]."""
    if "images" not in arrays or "final_avg_pool" not in arrays:
        raise ValueError(f"verify={where}: must hold `images` and `final_avg_pool`")
    images = arrays["images"]
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"verify={where}: images are {images.shape} {images.dtype}, not (N, H, W, 3) float32 or uint8")
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return tensor / 255 if images.dtype == np.uint8 else tensor


@torch.inference_mode()
def activations(converted: Converted, images: Tensor) -> dict[str, Tensor]:
    """What the official model returns in inference, as far as the checkpoint holds the networks for it."""
    h = converted.encoder(images)
    hiddens = [h] if converted.head is None else converted.head.activations(h)
    found = {"final_avg_pool": h}
    if converted.head is not None:
        found["proj_head_output"] = hiddens[-1]
    if converted.supervised is not None:
        found["logits_sup"] = converted.supervised(hiddens[converted.card.supervised["input"]])
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"verify={path}: not an npz of arrays: {error}") from None


def _grouped(keys: list[str]) -> str:
    """The ignored keys in few words: slots are counted by their name, all else is listed."""
    slots = [key for key in keys if ".OPTIMIZER_SLOT" in key or key.endswith(("/Momentum", "/Adam", "/Adam_1"))]
    copies = [key for key in keys if key not in slots and key.startswith(("base_model/", "head_", "ema_model/"))]
    rest = sorted(key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in keys if key not in {*slots, *copies})
    counted = [f"{len(found)} {what}" for found, what in ((slots, "optimizer slots"),
               (copies, "variables of the other copy")) if found]  # fmt: skip
    return ", ".join([*counted, *rest]) or "nothing"
