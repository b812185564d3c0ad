"""Conversion of official TensorFlow checkpoints, and of the checkpoints of other toolkits."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from simclr.data.arrays import read_arrays
from simclr.errors import DataError, SettingError
from simclr.models.imports import Architecture, Normalisation, import_weights
from simclr.models.official.convert import Converted, convert
from simclr.models.weights import save_encoder
from simclr.runs.files import require_folder_path
from simclr.runs.results import named_run
from simclr.settings import check_settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a checkpoint to a run folder that every command takes. Conversion is complete or refused.

    Official SimCLR and SimCLRv2 checkpoints are read without TensorFlow. Files of lightly, lightly-train, solo-learn,
    VISSL, mmselfsup, mmpretrain, Spijkervet/SimCLR, sthalles/SimCLR, torchvision and timm are recognised by the names
    of their tensors: the encoder is converted; heads, classifiers and momentum copies are left out. Nothing in a file
    is executed.
    """

    command: ClassVar[str] = "convert"

    checkpoint: Path
    """checkpoint: of TensorFlow a folder, SavedModel, hub module or path without `.index`; otherwise a file
    (.safetensors, .pt, .pth, .ckpt) or timm:NAME[:FILE]"""
    out: Path
    """folder to write, with encoder.safetensors, head.safetensors and card.json"""
    weights: Literal["model", "ema"] = "model"
    """variables to convert: the trained ones, or the moving averages in TensorFlow 1 checkpoints of v2"""
    supervised_input: int = setting(0, at_least=0)
    """layer of the head that is classified (official ft_proj_selector)"""
    image_size: int | None = setting(None, at_least=1)
    """side of the images that the encoder is used with, pixels, as its card says (default: that of the largest views;
    of converted weights 32 with the small stem, else 224); more than the views have often gives better features, since
    crops enlarge what they show (Touvron et al. 2019)"""
    encoder: str | None = None
    """encoder of another toolkit's file: the name of any timm model, or package.module:function, code of your own
    (default: the ResNet that the tensors decide)"""
    encoder_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """options of that encoder; mean and std, to normalise the images"""
    normalisation: Normalisation = "default"
    """normalisation of the images for another toolkit's file: that of the timm model or toolkit, which is ImageNet's
    for most; imagenet; or none"""
    verify: Path | None = None
    """npz of activations to reproduce: `images` (N, H, W, 3), float32 in [0, 1] or uint8, `final_avg_pool` (N, D) and,
    optionally, `proj_head_output` and `logits_sup` of the official model in inference"""
    tolerance: float = setting(1e-4, at_least=0)
    """maximum difference allowed by `verify`, as a fraction of the largest activation"""

    def __post_init__(self) -> None:
        check_settings(self)
        if self._is_official and self.checkpoint.exists() and (self.encoder is not None or self.encoder_options):
            raise SettingError("encoder", "absent for a TensorFlow checkpoint, whose encoder is known", self.encoder)

    def __call__(self) -> dict[str, float | int]:
        """Write the folder; return the numbers of variables converted and ignored, and the measured differences."""
        require_folder_path(self.out)
        if not self.out.name or (self.out.exists() and any(self.out.iterdir())):
            raise SettingError("out", "the name of a new or empty folder", str(self.out))
        if self._is_official:
            converted = convert(self.checkpoint, self.weights, self.supervised_input, self.image_size)
        else:
            converted = self._import()
        differences = self._verified(converted)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as folder:
            whole = Path(folder) / self.out.name
            save_encoder(whole, converted.encoder, converted.head, converted.card, converted.supervised)
            os.replace(whole, self.out)
        self._report(converted, differences)
        return {
            "placed": sum(converted.placed.values()),
            "ignored": len(converted.ignored),
            **{f"difference/{name}": difference for name, difference in differences.items()},
        }

    @property
    def _is_official(self) -> bool:
        is_file = self.checkpoint.is_file() and self.checkpoint.suffix != ".index"
        return not (is_file or named_run(self.checkpoint).is_timm)

    def _import(self) -> Converted:
        """Return the encoder of another toolkit's file."""
        named = named_run(self.checkpoint)
        name = named.encoder if named.is_timm else self.encoder
        if named.is_timm and self.encoder not in (None, name):
            raise SettingError("encoder", f"absent or {name}, as the checkpoint says", self.encoder)
        architecture = Architecture(name, self.encoder_options, self.image_size, self.normalisation)
        imported = import_weights(named.path if named.is_timm else self.checkpoint, architecture)
        print(f"{imported.scheme}: every tensor of the encoder found")
        if imported.classes:
            print(f"classes that the file names, of which nothing was executed: {', '.join(imported.classes)}")
        count = len(imported.encoder.state_dict())
        return Converted(imported.encoder, None, None, imported.card, {"encoder": count}, imported.dropped)

    def _verified(self, converted: Converted) -> dict[str, float]:
        if self.verify is None:
            return {}
        expected = read_arrays(self.verify)
        actual = activations(converted, images_of(expected, self.verify))
        differences = {}
        for name in ("final_avg_pool", "proj_head_output", "logits_sup"):
            if name not in expected:
                continue
            if name not in actual:
                raise DataError(self.verify, f"has {name}, which the networks of this checkpoint do not compute")
            target = torch.from_numpy(expected[name])
            if target.shape != actual[name].shape:
                problem = f"{name} is {tuple(target.shape)}, but the network computes {tuple(actual[name].shape)}"
                raise DataError(self.verify, problem)
            difference = float((actual[name] - target).abs().max() / target.abs().max().clamp_min(1e-12))
            if not difference <= self.tolerance:
                problem = f"{name} differs by {difference:.2g} of its maximum, more than {self.tolerance:.2g}"
                raise DataError(self.verify, problem, "Nothing was written")
            differences[name] = difference
        return differences

    def _report(self, converted: Converted, differences: Mapping[str, float]) -> None:
        options = " ".join(f"{name}={value}" for name, value in converted.card.encoder["options"].items())
        parts = ", ".join(f"{what} {count}" for what, count in converted.placed.items())
        print(f"{converted.card.encoder['name']} {options}")
        print(f"converted {sum(converted.placed.values())} variables: {parts}")
        if self._is_official:
            print(f"ignored {len(converted.ignored)} variables of the training state: {_grouped(converted.ignored)}")
        else:
            counts = Counter(key.rpartition(".")[0].partition(".")[0] or key for key in converted.ignored)
            listed = ", ".join(f"{part} ({count})" for part, count in counts.items()) or "none"
            print(f"left out {len(converted.ignored)} tensors of heads, classifiers and copies: {listed}")
        assumed = "" if self.image_size else " (as the network suggests; --image_size for others)"
        print(f"images: {converted.card.image_size} px{assumed}; {converted.card.input}")
        for name, difference in differences.items():
            print(f"{name}: maximum difference {difference:.2g} of the maximum value")
        print(f"wrote {self.out}")


def images_of(arrays: Mapping[str, np.ndarray], where: Path) -> Tensor:
    """Return the images of a verification file as the network needs them, (N, 3, H, W) in [0, 1]."""
    if "images" not in arrays or "final_avg_pool" not in arrays:
        raise DataError(where, "must have `images` and `final_avg_pool`")
    images = arrays["images"]
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype not in (np.uint8, np.float32, np.float64):
        raise DataError(where, f"images are {images.shape} {images.dtype}, not (N, H, W, 3) float32 or uint8")
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return tensor / 255 if images.dtype == np.uint8 else tensor


@torch.inference_mode()
def activations(converted: Converted, images: Tensor) -> dict[str, Tensor]:
    """Return what the official model computes in inference, as far as the checkpoint has the networks."""
    h = converted.encoder(images)
    hiddens = [h] if converted.head is None else converted.head.activations(h)
    computed = {"final_avg_pool": h}
    if converted.head is not None:
        computed["proj_head_output"] = hiddens[-1]
    if converted.supervised is not None:
        computed["logits_sup"] = converted.supervised(hiddens[converted.card.supervised["input"]])
    return computed


def _grouped(keys: list[str]) -> str:
    """Return the ignored keys as text: slots are counted, others are listed."""
    slots = [key for key in keys if ".OPTIMIZER_SLOT" in key or key.endswith(("/Momentum", "/Adam", "/Adam_1"))]
    copies = [key for key in keys if key not in slots and key.startswith(("base_model/", "head_", "ema_model/"))]
    rest = sorted(key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in keys if key not in {*slots, *copies})
    groups = ((slots, "optimizer slots"), (copies, "variables of the other copy"))
    counted = [f"{len(keys)} {what}" for keys, what in groups if keys]
    return ", ".join([*counted, *rest]) or "nothing"
