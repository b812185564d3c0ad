"""Names of the variables of the networks in `resnet` and `head` in official checkpoints.

TensorFlow 2 names are paths through the official objects (`model/resnet_model/block_groups/0/...`), TensorFlow 1
names count layers in the order of their creation (`base_model/conv2d_7/kernel`), in which the projection of a
block's shortcut comes before its main convolutions.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simclr.models.resnet import DEPTHS

Kind = Literal["conv", "gate", "dense", "classifier", "norm", "last norm"]
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
LEAVES: dict[Kind, dict[str, str]] = {
    "conv": {"weight": "kernel"},
    "gate": {"weight": "kernel", "bias": "bias"},
    "dense": {"weight": "kernel"},
    "classifier": {"weight": "kernel", "bias": "bias"},
    "norm": _NORM,
    "last norm": {ours: official for ours, official in _NORM.items() if ours != "bias"},
}
"""kind of layer -> {our name of a tensor: the official name}"""


class Layer(NamedTuple):
    """Our name and both official names of a layer, each within its network."""

    ours: str
    tf2: str
    tf1: str
    kind: Kind


def encoder_layers(depth: int, sk: bool, se: bool, small_stem: bool) -> list[Layer]:
    """Return the layers of an encoder in the order of their creation."""
    seen: Counter[str] = Counter()
    layers = []
    for ours, tf2, kind in [*_stem(sk and not small_stem), *_blocks(depth, sk, se)]:
        word = "batch_normalization" if kind == "norm" else "conv2d"
        tf1 = f"base_model/{word}_{seen[word]}" if seen[word] else f"base_model/{word}"
        seen[word] += 1
        layers.append(Layer(ours, f"model/resnet_model/{tf2}", tf1, kind))
    return layers


def head_layers(layers: int, kept: int | None = None) -> list[Layer]:
    """Return the layers of a projection head of which the first `kept` exist."""
    result = []
    for j in range(layers if kept is None else kept):
        norm: Kind = "last norm" if j == layers - 1 else "norm"
        tf2, tf1 = f"model/_projection_head/linear_layers/{j}", f"head_contrastive/nl_{j}"
        result.append(Layer(f"layers.{j}.dense", f"{tf2}/dense", f"{tf1}/dense", "dense"))
        result.append(Layer(f"layers.{j}.norm", f"{tf2}/bn_relu/bn", f"{tf1}/batch_normalization", norm))
    return result


def supervised_layers() -> list[Layer]:
    """Return the layers of the classifier."""
    return [Layer("", "model/supervised_head/linear_layer/dense", "head_supervised/linear_layer/dense", "classifier")]


def official_names(layers: list[Layer], form: Literal["tf2", "tf1"] = "tf2") -> dict[str, str]:
    """Return {our name in the module's state dict: the official variable's name}, without `num_batches_tracked`."""
    return {
        f"{layer.ours}.{ours}".removeprefix("."): f"{getattr(layer, form)}/{official}"
        for layer in layers
        for ours, official in LEAVES[layer.kind].items()
    }


def to_torch(value: np.ndarray) -> Tensor:
    """Return an official array in torch's layout: kernels (h, w, in, out) -> (out, in, h, w), (in, out) -> (out,
    in)."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, tuple(range(value.ndim)))
    return torch.from_numpy(np.array(value.transpose(axes), order="C"))  # a copy: files are mapped read-only


def _stem(three_convolutions: bool) -> Iterator[tuple[str, str, Kind]]:
    path = "initial_conv_relu_max_pool"
    if three_convolutions:
        for i, conv in enumerate((0, 2)):
            yield f"conv1.{3 * i}", f"{path}/{conv}/conv2d", "conv"
            yield f"conv1.{3 * i + 1}", f"{path}/{conv + 1}/bn", "norm"
        yield "conv1.6", f"{path}/4/conv2d", "conv"
        yield "bn1", f"{path}/6/bn", "norm"
    else:
        yield "conv1", f"{path}/0/conv2d", "conv"
        yield "bn1", f"{path}/2/bn", "norm"


def _blocks(depth: int, sk: bool, se: bool) -> Iterator[tuple[str, str, Kind]]:
    blocks, bottleneck = DEPTHS[depth]
    for group, count in enumerate(blocks):
        for block in range(count):
            ours, tf2 = f"layer{group + 1}.{block}", f"block_groups/{group}/layers/{block}"
            if block == 0:
                # the projection follows its pooling and, for a stride, its padding
                at = 0 if not sk else 1 if group == 0 else 2
                path = f"{tf2}/{'projection_layers' if bottleneck else 'shortcut_layers'}"
                yield f"{ours}.downsample.{int(sk)}", f"{path}/{at}/conv2d", "conv"
                yield f"{ours}.downsample.{int(sk) + 1}", f"{path}/{at + 1}/bn", "norm"
            if bottleneck:
                yield from _bottleneck(ours, f"{tf2}/conv_relu_dropblock_layers", sk)
                gate = f"{tf2}/conv_relu_dropblock_layers/{8 if sk else 9}"
            else:
                for i in (0, 1):
                    yield f"{ours}.conv{i + 1}", f"{tf2}/conv2d_bn_layers/{2 * i}/conv2d", "conv"
                    yield f"{ours}.bn{i + 1}", f"{tf2}/conv2d_bn_layers/{2 * i + 1}/bn", "norm"
                gate = f"{tf2}/se_layer"
            if se:
                yield f"{ours}.se.reduce", f"{gate}/se_reduce", "gate"
                yield f"{ours}.se.expand", f"{gate}/se_expand", "gate"


def _bottleneck(ours: str, path: str, sk: bool) -> Iterator[tuple[str, str, Kind]]:
    yield f"{ours}.conv1", f"{path}/0/conv2d", "conv"
    yield f"{ours}.bn1", f"{path}/1/bn", "norm"
    if sk:
        yield f"{ours}.conv2.conv", f"{path}/3/conv2d_fixed_padding/conv2d", "conv"
        yield f"{ours}.conv2.bn", f"{path}/3/batch_norm_relu/bn", "norm"
        yield f"{ours}.conv2.reduce", f"{path}/3/conv2d_0", "conv"
        yield f"{ours}.conv2.reduce_bn", f"{path}/3/batch_norm_relu_1/bn", "norm"
        yield f"{ours}.conv2.mix", f"{path}/3/conv2d_1", "conv"
    else:
        yield f"{ours}.conv2", f"{path}/3/conv2d", "conv"
        yield f"{ours}.bn2", f"{path}/4/bn", "norm"
    last = 5 if sk else 6
    yield f"{ours}.conv3", f"{path}/{last}/conv2d", "conv"
    yield f"{ours}.bn3", f"{path}/{last + 1}/bn", "norm"
