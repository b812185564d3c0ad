"""Import of the weights of other toolkits: every tensor of the encoder is placed, or the file is refused.

Files are read as tensors and plain values. Nothing in them is executed.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from simclr.errors import RunError, SettingError
from simclr.models.card import Card
from simclr.models.encoder import create_encoder, resampled
from simclr.models.options import is_own
from simclr.models.resnet import DEPTHS
from simclr.models.toolkits import SCHEMES, Placement, Scheme, place, state_in
from simclr.models.weights import check_match, read_origin
from simclr.runs.reading import file_hash, open_regular
from simclr.runs.recipe import is_import_path

CHANNELS = 3
Normalisation = Literal["default", "imagenet", "none"]


class Imported(NamedTuple):
    """An encoder with the weights of a file, in evaluation mode."""

    encoder: nn.Module
    card: Card
    scheme: str
    dropped: list[str]
    """tensors that were left out, by the scheme: heads, classifiers, momentum copies"""
    classes: list[str]
    """classes that the file names; nothing of them was executed"""


class Architecture(NamedTuple):
    """What the user says of the network of a weights file, as far as the file does not."""

    encoder: str | None = None
    options: Mapping[str, Any] = {}
    image_size: int | None = None
    normalise: Normalisation = "default"


def import_weights(path: str | Path, architecture: Architecture) -> Imported:
    """Return the encoder of a weights file: of the named architecture, or the ResNet that its tensors decide.

    Raises RunError, with the names, unless each tensor of the encoder is in the file and each tensor of the file is one
    of the encoder or left out by the naming scheme.
    """
    path = Path(path)
    content, classes = read_weights(path)
    tensors = state_in(content)
    if not tensors:
        raise RunError(path, "contains no tensors under the names of a network")
    name, options = architecture.encoder, dict(architecture.options)
    infers = name is None or is_own(name)
    config = None if infers or is_import_path(name) else timm.get_pretrained_cfg(name)
    if infers:
        placement, (found, inferred) = _infer(tensors, path)
        if name not in (None, found):
            raise RunError(path, f"contains weights of {found}, not of {name}", names=("encoder",))
        name, options = found, inferred | options
    size = architecture.image_size or (config.input_size[-1] if config else _usual_size(options))
    options = _normalisation(architecture, placement.scheme if infers else None, config) | options
    encoder = _create(name, size, options, path if infers else None)
    if not infers:
        placement = max(
            (place(scheme, tensors, encoder.state_dict()) for scheme in SCHEMES),
            key=lambda p: (len(p.placed), -len(p.left)),
        )
    _fill(encoder, tensors, placement, path)
    card = Card(
        encoder={"name": name, "options": options},
        features=encoder.num_features,
        image_size=size,
        preprocess={"size": size, "crop": (config and config.crop_pct) or 0.875},
        source={"checkpoint": path.name, "format": placement.scheme.name, "sha256": file_hash(path)[:12]},
    )
    return Imported(encoder.eval(), card, placement.scheme.name, placement.dropped, classes)


def read_weights(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Return the content of a weights file, tensors and plain values, and the classes that it names, for which it holds
    nothing."""
    try:
        open_regular(path, RunError).close()
        if path.suffix == ".safetensors":
            if "encoder" in read_origin(path):
                raise RunError(path, "is an encoder of this package without its card.json", "Name its run folder")
            return load_file(path), []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
                    raise RunError(path, "is compressed, which torch.save does not do")
        classes = _classes_in(path)
        with torch.serialization.safe_globals([(_Nothing, name) for name in classes]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RunError, FileNotFoundError) as error:
        raise error if isinstance(error, RunError) else RunError(path, "does not exist") from None
    except Exception as error:  # torch reads pickles: a file can raise nearly anything
        reason = " ".join(str(error).partition("WeightsUnpickler error:")[2].split() or str(error).split())[:200]
        reason = reason.partition(" was not an allowed global")[0]
        problem = f"cannot be read as tensors and plain values, and nothing in it is executed ({reason})"
        raise RunError(path, problem, "Save its state dict alone: torch.save(model.state_dict(), FILE)") from None
    if not isinstance(content, Mapping):
        raise RunError(path, f"contains a {type(content).__name__}, not tensors by name")
    return content, classes


class _Nothing:
    """Stand-in for a class that a file names: it accepts what the file gives it, and keeps and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _classes_in(path: Path) -> list[str]:
    """Return the classes and functions named in a file that are not torch's own; none for torch's format before 1.6,
    in which they are refused."""
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if zipfile.is_zipfile(path) else []


def _infer(tensors: Mapping[str, Tensor], path: Path) -> tuple[Placement, tuple[str, dict[str, Any]]]:
    """Return the first scheme that explains all tensors as those of a ResNet, and the ResNet."""
    for scheme in SCHEMES:
        placement = place(scheme, tensors)
        if placement.left or (scheme.signed and not placement.dropped):
            continue
        resnet = _resnet({name: tuple(tensors[key].shape) for name, key in placement.placed.items()}, scheme)
        if resnet is not None:
            if (channels := tensors[placement.placed["conv1.weight"]].shape[1]) != CHANNELS:
                problem = f"is of a network for {channels} channels; {CHANNELS} are supported"
                raise RunError(path, problem, names=("channels",))
            return placement, resnet
    problem = f"its names ({', '.join(list(tensors)[:3])}, ...) are not those of a ResNet in a known naming scheme"
    remedy = "Name the encoder: --encoder, with a model of timm or package.module:function"
    if any(".shortcut." in name for name in tensors):
        remedy = "lightly's ResNetGenerator has no ReLU after its first norm: give it as package.module:function"
    raise RunError(path, problem, remedy)


def _resnet(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> tuple[str, dict[str, Any]] | None:
    """Return name and options of the ResNet whose tensors have these shapes, None if there is none."""
    stem = shapes.get("conv1.weight", ())
    if len(stem) != 4 or stem[2] not in (3, 7) or "bn1.weight" not in shapes:
        return None
    blocks = Counter(name.split(".")[0] for name in shapes if name.endswith(".conv1.weight"))
    form = tuple(blocks[f"layer{k}"] for k in range(1, 5)), "layer1.0.conv3.weight" in shapes
    depth = next((depth for depth, known in DEPTHS.items() if known == form), None)
    if depth is None:
        return None
    pad = "torch" if form[1] or "layer1.0.downsample.0.weight" in shapes else "torchvision"
    width = stem[0] / 64
    options = {"stem": scheme.stem if stem[2] == 3 else "imagenet", "pad": pad}
    return f"simclr_resnet{depth}", {"width": int(width) if width.is_integer() else width, **options}


def _usual_size(options: Mapping[str, Any]) -> int:
    return 32 if options.get("stem", "imagenet") not in ("imagenet", "auto") else 224


def _normalisation(architecture: Architecture, scheme: Scheme | None, config: Any) -> dict[str, Any]:
    """Return the options that normalise the images: those asked for, else those of timm's model or of the scheme."""
    if architecture.normalise == "default" and config is not None:
        return {"mean": list(config.mean), "std": list(config.std)}
    by_default = architecture.normalise == "default" and scheme is not None and scheme.imagenet
    if architecture.normalise == "imagenet" or by_default:
        return {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
    return {}


def _create(name: str, size: int, options: Mapping[str, Any], path: Path | None) -> nn.Module:
    """Return the network; what is wrong with it is the fault of the file at `path`, if its tensors decided it."""
    try:
        return create_encoder(name, size, options)
    except SettingError as error:
        if path is None:
            raise
        raise RunError(path, f"its tensors are of no network that can be built ({error})") from None


def _fill(encoder: nn.Module, tensors: Mapping[str, Tensor], placement: Placement, path: Path) -> None:
    """Load the tensors into the encoder; raise RunError unless all of them match. The counter of batches, which old
    versions of torch did not save, is not needed."""
    expected = encoder.state_dict()
    actual = resampled({name: tensors[key] for name, key in placement.placed.items()}, encoder)
    actual |= {key: tensors[key] for key in placement.left}
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    check_match(expected, {**counters, **actual}, path)
    encoder.load_state_dict({**counters, **actual})
