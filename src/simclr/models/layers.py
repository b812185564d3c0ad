"""Layers of a network: h, z, a layer of the head, or the pooled output of a stage of the encoder."""

from jaxtyping import Float
from torch import Tensor, nn

from simclr.errors import SettingError
from simclr.models.encoder import normalised_input
from simclr.models.head import ProjectionHead
from simclr.models.resnet import pooled

STAGES = ("initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4")


def layer_names(encoder: nn.Module, head: ProjectionHead | None) -> list[str]:
    """Return the names of the layers of a network for `read_layer`, in the order of the computation.

    `head.1` is the output of the head's first layer after its ReLU; the last layer's is `z`.
    """
    depth = 0 if head is None else len(head.layers)
    stages = STAGES if hasattr(encoder, "stages") else ()
    return [*stages, "h", *(f"head.{k}" for k in range(1, depth)), *(["z"] if depth else [])]


def read_layer(encoder: nn.Module, head: ProjectionHead | None, layer: str) -> nn.Module:
    """Return the network up to `layer`, images (B, C, S, S) -> (B, D); it shares its parameters with `encoder` and
    `head`.

    Feature maps are averaged over positions.
    """
    names = layer_names(encoder, head)
    if layer not in names:
        raise SettingError("layer", f"one of {', '.join(names)} for this network", layer)
    if layer == "h":
        return encoder
    if layer in STAGES:
        return _Stage(encoder, layer)
    return nn.Sequential(encoder, head.first(len(head.layers) if layer == "z" else int(layer.removeprefix("head."))))


def feature_maps(encoder: nn.Module, x: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
    """Return the outputs (B, C, H, W) of the stages of an encoder by name, in the order of the computation: `stages` of
    a ResNet of this package, `feature_maps` of another network, and the names in timm's `feature_info`. Raises
    SettingError for a network that has none of them."""
    if hasattr(encoder, "stages"):
        return {name: values for name, values in encoder.stages(x).items() if values.dim() == 4}
    x = normalised_input(encoder, x)
    if hasattr(encoder, "feature_maps"):
        return encoder.feature_maps(x)
    if not hasattr(encoder, "forward_intermediates"):
        allowed = "one with a method `feature_maps` or timm's `forward_intermediates`"
        raise SettingError("encoder", allowed, type(encoder).__name__)
    names = [stage["module"] for stage in encoder.feature_info]
    return dict(zip(names, encoder.forward_intermediates(x, intermediates_only=True), strict=True))


class _Stage(nn.Module):
    def __init__(self, encoder: nn.Module, stage: str) -> None:
        super().__init__()
        self.encoder, self.stage = encoder, stage

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return pooled(self.encoder.stages(x)[self.stage])
