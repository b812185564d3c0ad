"""A plain convolutional network for small images on a CPU."""

from collections.abc import Sequence

from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn

from simclr.errors import SettingError
from simclr.models.norm import BatchNorm2d


class ConvNet(nn.Module):
    """Images (B, in_chans, H, W) to pooled features (B, D): 3×3 convolutions with batch norm and ReLU.

    widths: channels of each convolution, of which D is the last; all but the first halve the side of the images.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), in_chans: int = 3) -> None:
        super().__init__()
        if not widths or min(widths) < 8:  # torch 2.14 crashes on a CPU below, see `resnet`
            raise SettingError("widths", "a list of numbers of at least 8", list(widths))
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=min(2, i + 1), padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Return the output of the last convolution."""
        return self.layers(x)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.forward_features(x).mean((2, 3))


@register_model
def simclr_convnet(pretrained: bool = False, num_classes: int = 0, in_chans: int = 3, **options) -> ConvNet:
    """`ConvNet` by timm's name."""
    if pretrained or num_classes:
        raise SettingError("encoder", "made without weights and classes", "simclr_convnet")
    names = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # which timm adds to every call
    return ConvNet(in_chans=in_chans, **{name: value for name, value in options.items() if name not in names})
