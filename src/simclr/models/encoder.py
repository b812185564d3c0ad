"""Encoders by name: SimCLR's own ResNets, every model of timm, and functions of the user's own."""

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from simclr.errors import SettingError
from simclr.models.options import (
    ENCODERS,
    NORMALISATION,
    architecture_options,
    check_options,
    is_own,
    limited_memory,
)
from simclr.models.resnet import ResNet
from simclr.runs.recipe import is_import_path


def create_encoder(
    name: str, image_size: int = 224, options: Mapping[str, Any] | None = None, features: int | None = None
) -> nn.Module:
    """Return an encoder with random weights, images (B, C, S, S) -> features (B, D) with D = `.num_features`.

    name: `simclr_resnet50` and others (options: those of `simclr.models.resnet`), a name of `timm.list_models()`
        (options: those of its architecture), or `package.module:function`, which is imported and called with the
        options. Nothing is downloaded and no file is read.
    image_size: side of the images, pixels; decides the stem of our ResNets and the grid of transformers.
    options: `in_chans` is the number of channels C, by default 3. `mean` and `std`, for any encoder, normalise the
        images at the input of the network.
    features: D; by default it is measured with an image.
    Raises SettingError for an unknown name or option and for a model that does not pool to (B, D).
    """
    options = dict(options or {})
    own, imported = is_own(name), is_import_path(name)
    if not own and not imported and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists all of them"
        raise SettingError("encoder", ENCODERS, name, hint)
    check_options(name, options)
    mean, std = (options.pop(each, None) for each in NORMALISATION)
    if own:
        options.setdefault("image_size", image_size)
    elif not imported and has_fixed_size(name):
        options.setdefault("img_size", image_size)
    try:
        with limited_memory():
            encoder = _call(name, options) if imported else timm.create_model(name, num_classes=0, **options)
    except SettingError:
        raise
    except Exception as error:  # timm and its models reject options with exceptions of many types
        raise SettingError("encoder_options", f"options of {name}", options, " ".join(str(error).split())) from error
    if not own:
        channels = options.get("in_chans", 3)
        encoder.num_features = features or _measured_features(name, encoder, image_size, channels)
    return encoder if mean is None else _normalised(encoder, mean, std)


def _call(path: str, options: Mapping[str, Any]) -> nn.Module:
    """Return the network that a function of the user's own makes."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        remedy = f"{error}. The module must be installed or in a folder of PYTHONPATH"
        raise SettingError("encoder", "package.module:function that can be imported", path, remedy) from error
    network = function(**options)
    if not isinstance(network, nn.Module):
        returned = f"{path}, which returns {type(network).__name__}"
        raise SettingError("encoder", "a function that returns a torch.nn.Module", returned)
    return network


def _normalised(encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Return the encoder with images normalised where they enter it: for our ResNets the first layer, which `stages`
    begins with too. The names of its tensors stay as they are."""
    entry = encoder.conv1 if isinstance(encoder, ResNet) else encoder
    for name, values in zip(NORMALISATION, (mean, std), strict=True):
        buffer = torch.tensor(values, dtype=torch.get_default_dtype()).view(1, -1, 1, 1)
        entry.register_buffer(f"input_{name}", buffer, persistent=False)
    entry.register_forward_pre_hook(_normalise)
    return encoder


def _normalise(layer: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (normalised_input(layer, inputs[0]),)


def normalised_input(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return images as the layer takes them after its hook: normalised, if the encoder has a mean."""
    return (x - layer.input_mean) / layer.input_std if hasattr(layer, "input_mean") else x


def has_fixed_size(name: str) -> bool:
    """Return whether a model of timm is built for one size of images, such as a transformer."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and config.fixed_input_size


def check_image_sizes(name: str, encoder: nn.Module, sizes: Iterable[int], channels: int = 3) -> None:
    """Raise SettingError unless the encoder `name` takes images of these sides, pixels."""
    for size in sizes:
        _measured_features(name, encoder, size, channels)


def _measured_features(name: str, encoder: nn.Module, image_size: int, channels: int) -> int:
    """Return D, from one image: timm's own `num_features` differs for models with a last hidden layer."""
    training = encoder.training
    try:
        with torch.no_grad():
            output = encoder.eval()(torch.zeros(1, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "dynamic_img_size" in architecture_options(name):
            reason += "; encoder_options.dynamic_img_size true lets it take images of several sizes"
        raise SettingError("encoder", f"a model for images of {image_size} px", name, reason) from error
    encoder.train(training)
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        allowed = "a model that returns features (B, D)"
        raise SettingError("encoder", allowed, f"{name}, which returns {shape}", "Choose options that pool")
    return output.shape[1]


def resampled(tensors: dict[str, torch.Tensor], encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a transformer of timm with its embeddings of positions resampled, as timm does, if
    `encoder` is for images of another size and nothing else differs; otherwise the tensors unchanged."""
    expected, module = encoder.state_dict(), type(encoder).__module__
    wrong = [name for name, x in tensors.items() if name in expected and expected[name].shape != x.shape]
    resample = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    if not wrong or resample is None or not all("pos" in name for name in wrong):
        return tensors
    return resample(tensors, encoder)
