"""A plain convolutional network for small images on a CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn

from simclr.errors import SettingError
from simclr.models.norm import BatchNorm2d
from simclr.models.resnet import pooled

WIDTHS, FEATURES, NARROWEST = (16, 32, 64, 128), 1024, 8  # torch 2.14 crashes on a CPU below 8 channels, see `resnet`


class ConvNet(nn.Module):
    """Images (B, in_chans, H, W) to pooled features (B, D): 3×3 convolutions and a 1×1 convolution, each followed by
    batch norm and ReLU.

    widths: channels of each 3×3 convolution; all but the first halve the side of the images.
    features: D, channels of the 1×1 convolution; 0: none, D is the last of `widths`.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, features: int = FEATURES, in_chans: int = 3) -> None:
        super().__init__()
        if not widths or min(widths) < NARROWEST:
            raise SettingError("widths", f"a list of numbers of at least {NARROWEST}", list(widths))
        if not (features == 0 or features >= NARROWEST):
            raise SettingError("features", f"0 or at least {NARROWEST}", features)
        outputs = [*widths, features] if features else widths
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((in_chans, *outputs), outputs, strict=False)):
            kernel, stride = (1, 1) if i == len(widths) else (3, min(2, i + 1))
            convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.num_features = outputs[-1]

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Return the output of the last convolution."""
        return self.layers(x)

    def feature_maps(self, x: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """Return the output of each convolution after its ReLU: layer1, layer2, ..."""
        maps: dict[str, Tensor] = {}
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps[f"layer{len(maps) + 1}"] = x
        return maps

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return pooled(self.forward_features(x))


def half_width(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the network with half the channels."""
    widths, features = options.get("widths", WIDTHS), options.get("features", FEATURES)
    half = [max(width // 2, NARROWEST) for width in widths]
    return {**options, "widths": half, "features": max(features // 2, NARROWEST) if features else 0}


@register_model
def simclr_convnet(pretrained: bool = False, num_classes: int = 0, in_chans: int = 3, **options) -> ConvNet:
    """`ConvNet` by timm's name."""
    if pretrained or num_classes:
        raise SettingError("encoder", "made without weights and classes", "simclr_convnet")
    names = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # which timm adds to every call
    return ConvNet(in_chans=in_chans, **{name: value for name, value in options.items() if name not in names})
