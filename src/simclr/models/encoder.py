"""Encoders by name: SimCLR's own ResNets and every model of timm."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from simclr.errors import SettingError
from simclr.models.options import check_options, is_own, limited_memory


def create_encoder(
    name: str, image_size: int = 224, options: Mapping[str, Any] | None = None, features: int | None = None
) -> nn.Module:
    """Return an encoder with random weights, images (B, 3, S, S) -> features (B, D) with D = `.num_features`.

    name: `simclr_resnet50` and others (options: those of `simclr.models.resnet`), or a name of `timm.list_models()`
        (options: those of its architecture). Nothing is downloaded and no file is read.
    image_size: side of the images, pixels; decides the stem of our ResNets and the grid of transformers.
    features: D; by default it is measured with an image.
    Raises SettingError for an unknown name or option and for a model that does not pool to (B, D).
    """
    options = dict(options or {})
    own = is_own(name)
    if not own and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "timm.list_models() lists all of them"
        raise SettingError("encoder", "simclr_resnet18 ... 200 or a model of timm", name, hint)
    check_options(name, options)
    if own:
        options.setdefault("image_size", image_size)
    elif _fixed_size(name):
        options.setdefault("img_size", image_size)
    try:
        with limited_memory():
            encoder = timm.create_model(name, num_classes=0, **options)
    except SettingError:
        raise
    except Exception as error:  # timm and its models reject options with exceptions of many types
        raise SettingError("encoder_options", f"options of {name}", options, str(error)) from error
    if not own:
        encoder.num_features = features or _measured_features(name, encoder, image_size)
    return encoder


def _fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and config.fixed_input_size


def _measured_features(name: str, encoder: nn.Module, image_size: int) -> int:
    """Return D, from one image: timm's own `num_features` differs for models with a last hidden layer."""
    training = encoder.training
    try:
        with torch.no_grad():
            output = encoder.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SettingError("encoder", f"a model for images of {image_size} px", name, reason) from error
    encoder.train(training)
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        allowed = "a model that returns features (B, D)"
        raise SettingError("encoder", allowed, f"{name}, which returns {shape}", "Choose options that pool")
    return output.shape[1]
