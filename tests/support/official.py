"""The rule by which the golden files' weights and images are drawn, on our networks."""

import re
import zlib

import numpy as np
import torch
from torch import nn

from simclr.models import ProjectionHead
from simclr.models.official.names import encoder_layers, head_layers, official_names, supervised_layers, to_torch
from simclr.models.resnet import ResNet


def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden files' value of the official variable `key`, in TensorFlow's shape."""
    z = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF).standard_normal(shape)
    leaf = key.rpartition("/")[2]
    if leaf == "kernel":
        value = z * np.sqrt(1 / np.prod(shape[:-1]))
    elif leaf == "gamma":
        value = 1 + 0.1 * z
    elif leaf == "moving_variance":
        value = np.exp(0.2 * z)
    else:
        value = 0.1 * z
    return value.astype(np.float32)


def keys_of(module: nn.Module) -> dict[str, str]:
    """{our name: TF2 object path} of a network."""
    if isinstance(module, ResNet):
        layers = encoder_layers(module.depth, module.sk_ratio > 0, module.se_ratio > 0, module.stem == "small")
    elif isinstance(module, ProjectionHead):
        layers = head_layers(module.depth, len(module.layers))
    else:
        layers = supervised_layers()
    return official_names(layers)


def tf_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.dim(), tuple(range(tensor.dim())))
    return tuple(tensor.shape[a] for a in axes)


def from_torch(value: torch.Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.dim(), tuple(range(value.dim())))
    return np.ascontiguousarray(value.detach().cpu().numpy().transpose(axes))


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Give a network the golden weights, at its own precision."""
    state = module.state_dict()
    for ours, key in keys_of(module).items():
        state[ours].copy_(to_torch(rule(key, tf_shape(state[ours]))))


def images(batch: int, height: int, width: int) -> np.ndarray:
    """The golden inputs (B, H, W, 3); in batches of 8 the second half resembles the first."""
    x = np.random.RandomState(4242).rand(batch, height, width, 3).astype(np.float32)
    if batch == 8:
        noise = np.random.RandomState(4243).rand(4, height, width, 3)
        x[4:] = np.clip(x[:4] * 0.6 + 0.4 * noise, 0, 1)
    return x


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).double()


# from the table in the golden files' description: (depth, sk, se, image shape, head layers, temperature)
CASES = {
    "r18_cifar_head3": (18, 0, 0, (8, 32, 32), 3, 0.5),
    "r18_cifar_head2": (18, 0, 0, (8, 32, 32), 2, 0.5),
    "r18_imagenet_head3": (18, 0, 0, (8, 64, 64), 3, 0.5),
    "r50_imagenet_head3": (50, 0, 0, (8, 64, 64), 3, 0.1),
    "r50_imagenet_head2": (50, 0, 0, (8, 64, 64), 2, 0.1),
    "r50_sk_imagenet_head3": (50, 0.0625, 0, (8, 64, 64), 3, 0.1),
    "r50_sk_cifar_head3": (50, 0.0625, 0, (4, 32, 32), 3, 0.1),
    "r50_imagenet_odd": (50, 0, 0, (2, 57, 75), 3, 0.1),
    "r50_sk_imagenet_odd": (50, 0.0625, 0, (2, 57, 75), 3, 0.1),
    "r18_cifar_se": (18, 0, 0.25, (4, 32, 32), 3, 0.5),
}
WHOLE = re.compile(r"(final_avg_pool|head_l\d+_bn_out|proj_out|sup_logits)$")
