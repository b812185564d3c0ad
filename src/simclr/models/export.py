"""Export of networks as programs without this package, and as weights of the networks of torchvision and timm.

The names of tensors agree, so only the architecture decides what can be exported: width 1, neither selective kernels
nor squeeze-and-excitation, and for the basic-block networks (18, 34) `pad="torchvision"`, since torchvision and timm
open their first group without a projection.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from simclr.data import open_source
from simclr.errors import SettingError
from simclr.models.card import Card
from simclr.models.encoder import has_fixed_size
from simclr.models.options import NORMALISATION
from simclr.models.resnet import SMALL_STEMS, ResNet
from simclr.models.weights import write_tensors
from simclr.runs.files import replacing, write_atomically
from simclr.views.preprocess import Preprocess

CHECKED = 3  # number of images on which an exported program is compared; another one than it was traced with
TORCHVISION = {depth: f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
TIMM = {**TORCHVISION, 200: "resnet200"}


def to_torchvision(
    encoder: nn.Module, *, allow_pad_difference: bool = False, allow_small_stem: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """Return (name, state dict) for `getattr(torchvision.models, name)()`, after `model.fc = torch.nn.Identity()`.

    The state dict loads strictly and gives the features of `encoder` in evaluation mode. Raises SettingError if
    torchvision has no such network, and, unless allowed, if its network differs in what weights cannot express:

    allow_pad_difference: for `pad="tf"`. Official max-pooling pads even sides only at the bottom and right,
    torchvision's on both; features are equal only where the first convolution gives an odd side, as for images of 225
    or 226 pixels, and close elsewhere. allow_small_stem: for the 3×3 stem. First set `model.conv1 = nn.Conv2d(3, 64, 3,
    padding=1, bias=False)` (padding=2 for the stem "solo-learn") and `model.maxpool = nn.Identity()`.
    """
    return _named("torchvision", TORCHVISION, encoder, allow_pad_difference, allow_small_stem)


def to_timm(
    encoder: nn.Module, *, allow_pad_difference: bool = False, allow_small_stem: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """Return (name, state dict) for `timm.create_model(name, num_classes=0)`; see `to_torchvision`."""
    return _named("timm", TIMM, encoder, allow_pad_difference, allow_small_stem)


def save_pt2(network: nn.Module, size: int, path: Path, card: str, channels: int = 3) -> float:
    """Write `network`, images (B, channels, size, size) -> (B, D), as a program of torch.export that contains the card.

    Return the maximum difference of its output from that of the network, which must be below 1e-4.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.rand(2, channels, size, size)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: _BATCH},), strict=False)
    with replacing(path) as file:
        torch.export.save(program, file, extra_files={"card.json": card})
        file.seek(0)
        return _difference(network, images.shape[1:], torch.export.load(file).module())


def save_onnx(network: nn.Module, size: int, path: Path, card: str, channels: int = 3) -> float:
    """Write `network` as an ONNX program with input `images`, output `features` and the card as metadata; see
    `save_pt2`."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401, used by torch
    except ImportError as error:
        raise SettingError(
            "to", f"another format, since {error.name} is not installed", "onnx", "pip install 'simclr-toolkit[onnx]'"
        ) from None
    images = torch.rand(2, channels, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter about itself
        program = torch.onnx.export(
            network, (images,), dynamo=True, dynamic_shapes=({0: _BATCH},),
            input_names=["images"], output_names=["features"], verbose=False,
        )  # fmt: skip
    model = program.model_proto
    onnx.helper.set_model_props(model, {"card": card})
    content = model.SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return _difference(
            network, images.shape[1:], lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        )


def save_huggingface(
    encoder: nn.Module, card: Card, name: str, state: dict[str, Tensor], folder: Path, *, exact: bool = True
) -> float:
    """Write config.json, model.safetensors and README.md, a folder that `timm.create_model("local-dir:FOLDER",
    pretrained=True)` loads and the Hugging Face Hub takes as a model.

    `name` and `state` are those of the network in timm. Return the maximum difference of its features from those of
    `encoder` on photographs, which must be below 1e-4 if they are to be `exact`.
    """
    options = dict(card.encoder.get("options") or {})
    mean, std = (
        options.pop(each, [default] * card.channels) for each, default in zip(NORMALISATION, (0, 1), strict=True)
    )
    arguments = {} if isinstance(encoder, ResNet) else options
    if has_fixed_size(name):
        arguments.setdefault("img_size", card.image_size)
    config = {
        "architecture": name.partition(".")[0],
        "num_classes": 0,
        "num_features": card.features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [card.channels, card.image_size, card.image_size], "mean": mean, "std": std, "num_classes": 0,
            "interpolation": "bicubic", "crop_pct": card.preprocess["crop"], "crop_mode": "center",
        },
        "simclr": dataclasses.asdict(card),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", state)
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(folder / "README.md", _README.format(name=config["architecture"], card=card))
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    shape = torch.Size(config["pretrained_cfg"]["input_size"])
    return _difference(encoder, shape, lambda x: network((x - mean) / std), 1e-4 if exact else torch.inf)


_README = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [image-feature-extraction, timm, simclr, self-supervised]
---
# {name}, pretrained with SimCLR

Encoder of images of {card.image_size} px: {card.features} features. Images: {card.input}; central crop of
{card.preprocess[crop]:g} of the shorter side, then one bicubic resize.

```python
import timm

encoder = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
```
"""
_BATCH = torch.export.Dim("batch")


@torch.no_grad()
def _difference(
    network: nn.Module, shape: torch.Size, program: Callable[[Tensor], Tensor], limit: float = 1e-4
) -> float:
    """Return the maximum difference of a program from a network, on photographs if they take three channels."""
    images = _photographs(shape[-1]) if shape[0] == 3 else torch.rand(CHECKED, *shape)
    expected = network(images)
    difference = ((program(images) - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    if not difference < limit:
        raise RuntimeError(f"the exported program differs from the network by {difference:.1e}; nothing was written")
    return difference


def _photographs(size: int) -> Float[Tensor, "n 3 size size"]:
    """Return photographs of the bundled sample, of which there are as many as are compared."""
    source = open_source("sample", "test")
    return torch.stack([Preprocess(size, 1.0)(source.read(i)) for i in range(CHECKED)])


def _named(
    library: str, names: dict[int, str], encoder: nn.Module, allow_pad: bool, allow_stem: bool
) -> tuple[str, dict[str, Tensor]]:
    reason = _obstacle(names, encoder, allow_pad, allow_stem)
    if reason is not None:
        raise SettingError("to", f"another format than {library} for this encoder: {reason}", library)
    return names[encoder.depth], {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


def _obstacle(names: dict[int, str], encoder: nn.Module, allow_pad: bool, allow_stem: bool) -> str | None:
    if not isinstance(encoder, ResNet):
        return f"{type(encoder).__name__} is not one of SimCLR's ResNets"
    if encoder.channels != 3:
        return f"its networks take images of 3 channels, this one takes {encoder.channels}"
    if encoder.sk_ratio > 0 or encoder.se_ratio > 0:
        return "it has no selective kernels and no squeeze-and-excitation"
    if encoder.depth in (18, 34) and encoder.pad != "torchvision":
        return f"its resnet{encoder.depth} has no projection shortcut in the first group, the official one has"
    if encoder.depth not in names:
        return f"it has no ResNet of depth {encoder.depth}; it has {', '.join(map(str, names))}"
    if encoder.width != 1:
        return f"its wide ResNets widen only the inside of blocks, width={encoder.width} widens everything"
    if encoder.stem in SMALL_STEMS:
        if not allow_stem:
            return "its stem is a 7×7 convolution; replace conv1 and maxpool there and pass allow_small_stem=True"
    elif encoder.pad == "tf" and not allow_pad:
        return 'its max-pool pads differently from pad="tf", so features differ; pass allow_pad_difference=True'
    return None
