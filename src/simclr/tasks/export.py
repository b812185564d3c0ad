"""Export of an encoder to a file that other programs load."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from simclr.data.survey import spread_images
from simclr.errors import SettingError
from simclr.evaluation.features import extract_all
from simclr.evaluation.metrics import accuracy
from simclr.evaluation.neighbours import knn_votes
from simclr.evaluation.protocol import open_labelled
from simclr.models.export import save_huggingface, save_onnx, save_pt2, to_timm, to_torchvision
from simclr.models.layers import read_layer
from simclr.models.onnx_program import OnnxProgram, quantise
from simclr.models.pretrained import Encoder, load, load_classifier
from simclr.models.weights import write_tensors
from simclr.runs.files import replacing, require_folder_path, require_new_file
from simclr.runs.results import run_folder
from simclr.settings import check_settings

CALIBRATED = 256  # training images on which the ranges of 8-bit activations are measured


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export the encoder of a run for use without this package.

    pt2 is a program that `torch.export.load(FILE).module()` loads in any PyTorch; onnx is a program for other runtimes,
    and for `simclr.load`. Both take images (B, 3, S, S) in [0, 1] as the card says, which they contain. onnx-int8 has
    weights and activations of 8 bits; it is calibrated on training images of `data`, and its k-NN accuracy is measured
    beside that of the program with 32 bits. timm and torchvision are weights with the names of that library; an encoder
    that the library does not have is refused. huggingface is a folder with weights, configuration and model card, which
    timm loads from "local-dir:FOLDER" and the Hugging Face Hub takes. The features of each file but onnx-int8 are
    compared with those of the encoder on photographs.
    """

    command: ClassVar[str] = "export"

    run: Path
    """run folder of the encoder, a weights file in it, or timm:NAME[:FILE], weights in FILE or in timm's cache"""
    to: Literal["pt2", "onnx", "onnx-int8", "timm", "torchvision", "huggingface"] = "pt2"
    """format of the file"""
    layer: str = "h"
    """layer of the network: h, z, head.1, head.2, ... or block_group1 to block_group4"""
    data: str | None = None
    """labelled images by which onnx-int8 is calibrated and measured"""
    out: Path | None = None
    """file to write; RUN/LAYER.pt2 or .onnx, RUN/LIBRARY-NAME.safetensors, or the folder RUN/huggingface, if not given.
    With pt2 and onnx, the layer may also be scores, the classifier of a fine-tuned run"""
    overwrite: bool = False
    """replacement of existing files"""
    allow_pad_difference: bool = False
    """torchvision, timm and huggingface: accept that the padding of the stem's max-pool differs, which changes features
    of even sides"""
    allow_small_stem: bool = False
    """torchvision and timm: accept that the small-image stem requires replacing the library's first layers"""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.layer != "h" and self.to in ("timm", "torchvision", "huggingface"):
            raise SettingError("layer", f"h with {self.to}, whose networks end there", self.layer)

    def __call__(self) -> dict[str, Any]:
        encoder = load(self.run)
        if self.to == "onnx-int8":
            return self.quantised(encoder)
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

    def quantised(self, encoder: Encoder) -> dict[str, Any]:
        """Write the network up to `layer` with 8 bits, and measure what that costs."""
        if self.data is None:
            raise SettingError("data", "labelled images, which onnx-int8 needs", "none")
        train, test = map(encoder.scaled, open_labelled(self.data))
        path = require_new_file(self.out or run_folder(self.run) / f"{self.layer}-int8.onnx", self.overwrite)
        card = encoder.card
        network = read_layer(encoder.network, encoder.head, self.layer).eval()
        with TemporaryDirectory() as folder:
            save_onnx(network, card.image_size, Path(folder) / "h.onnx", card.to_json(), card.channels)
            whole = (Path(folder) / "h.onnx").read_bytes()
        _, images, _ = spread_images(train, CALIBRATED)
        small = quantise(whole, torch.stack([encoder.preprocess(image) for image in images]))
        programs = [OnnxProgram(whole), OnnxProgram(small)]
        banks, queries = (extract_all(programs, split, encoder.preprocess) for split in (train, test))
        top1 = []
        for a, b in zip(banks, queries, strict=True):
            votes = knn_votes(a.features, a.labels, b.features, len(train.classes), k=20)
            top1.append(accuracy(votes, b.labels))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(small)
        print(
            f"k-NN top-1 {100 * top1[0]:.1f} % with 32 bits, {100 * top1[1]:.1f} % with 8, on {len(test):,} test images"
        )
        print(f"{len(whole) / 1e6:.3g} MB with 32 bits, {len(small) / 1e6:.3g} MB with 8")
        print(f"wrote {path}")
        return {"layer": self.layer, "top1_32": top1[0], "top1_8": top1[1], "n": len(test), "out": str(path)}

    def network(self, encoder: Encoder) -> nn.Module:
        """Return the network of the program."""
        if self.layer == "scores":
            return load_classifier(self.run)
        return read_layer(encoder.network, encoder.head, self.layer).eval()

    def weights(self, encoder: Encoder) -> dict[str, Any]:
        """Write the tensors of the encoder with another library's names."""
        name = encoder.card.encoder["name"]
        if self.to in ("timm", "huggingface") and not name.startswith("simclr_"):  # a model of timm
            state = encoder.network.state_dict()
        else:
            convert = to_torchvision if self.to == "torchvision" else to_timm
            small_stem = self.allow_small_stem and self.to != "huggingface"
            name, state = convert(
                encoder.network, allow_pad_difference=self.allow_pad_difference, allow_small_stem=small_stem
            )
        state = {key: tensor.contiguous() for key, tensor in state.items()}
        if self.to == "huggingface":
            return self.folder(encoder, name, state)
        path = require_new_file(self.out or run_folder(self.run) / f"{self.to}-{name}.safetensors", self.overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, state)
        print(f"{len(state)} tensors of {self.to}'s {name}")
        if encoder.card.encoder.get("options", {}).get("mean") is not None:
            print("of images normalised by mean and std, which the weights do not contain: see card.json")
        print(f"wrote {path}")
        return {"name": name, "tensors": len(state), "out": str(path)}

    def folder(self, encoder: Encoder, name: str, state: dict[str, Tensor]) -> dict[str, Any]:
        """Write the encoder as a folder for timm and the Hugging Face Hub."""
        folder = require_folder_path(self.out or run_folder(self.run) / "huggingface")
        if folder.is_dir() and any(folder.iterdir()) and not self.overwrite:
            raise SettingError("out", "a new or empty folder", str(folder), "Choose another --out or --overwrite")
        exact = not self.allow_pad_difference
        difference = save_huggingface(encoder.network, encoder.card, name, state, folder, exact=exact)
        print(f"timm's {name}; maximum difference {difference:.1e} on photographs")
        print(f"wrote {folder}")
        return {"name": name, "difference": difference, "out": str(folder)}
