"""ResNets as in the official SimCLR code (`tf2/resnet.py`), named as torchvision and timm name theirs.

Post-activation blocks with the stride on the 3×3 convolution ("v1.5"). Against torchvision: a projection
shortcut opens *every* group, also where the shapes would agree; the last norm of a block starts at zero;
convolutions start from a truncated normal with variance 1 / fan-in; and the stem's max-pool pads as
TensorFlow does. Selective kernels (SimCLRv2) bring ResNet-D's stem and average-pooled shortcuts along.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from simclr.errors import SettingError
from simclr.models.norm import BatchNorm2d

# depth -> (blocks in each group, bottleneck or not); depth 10 is ours, the rest official
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}
SMALL_STEMS = {"small": 1, "solo-learn": 2}  # names of the 3×3 stems -> padding, pixels


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Odd kernels need the same padding on both sides in TensorFlow too, so it is the convolution's own."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)


def pooled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Return the mean over positions. The gradient of `x.mean((2, 3))` is not channels-last as the rest of the backward
    pass is, which then takes ten times as long for the layer before, on a CPU; this one's is."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1) if x.requires_grad else x.mean((2, 3))


class SelectiveKernel(nn.Module):
    """Two 3×3 streams mixed by a channel-wise softmax of their pooled sum (Li et al. 2019; SimCLRv2)."""

    def __init__(self, channels: int, stride: int, ratio: float | int):
        super().__init__()
        middle = max(int(channels * ratio), 32)
        self.conv = _conv(channels, 2 * channels, 3, stride)
        self.bn = BatchNorm2d(2 * channels)
        self.reduce = _conv(channels, middle, 1)
        self.reduce_bn = BatchNorm2d(middle)
        self.mix = _conv(middle, 2 * channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        streams = F.relu(self.bn(self.conv(x)), inplace=True)
        total = pooled(streams)[..., None, None].unflatten(1, (2, -1)).sum(1)
        mixing = self.mix(F.relu(self.reduce_bn(self.reduce(total)), inplace=True))
        (first, second), (a, b) = streams.chunk(2, 1), mixing.chunk(2, 1)
        return torch.lerp(second, first, (a - b).sigmoid())  # a softmax over two, in one pass


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled features (Hu et al. 2018); `filters` is the block's, before expansion."""

    def __init__(self, channels: int, filters: int, ratio: float | int):
        super().__init__()
        middle = max(1, int(filters * ratio))
        self.reduce = _conv(channels, middle, 1, bias=True)
        self.expand = _conv(middle, channels, 1, bias=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x * self.expand(F.relu(self.reduce(pooled(x)[..., None, None]))).sigmoid()


class ShortcutPool(nn.Module):
    """ResNet-D's 2×2 average in front of a projection, with the official padding at the bottom and right.

    At stride 2 the padding counts as zeros; at stride 1 it is left out of the average.
    """

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        if self.stride == 1:
            return F.avg_pool2d(x, 2, 1, padding=1, count_include_pad=False)[..., 1:, 1:]
        return F.avg_pool2d(x, 2, 2, ceil_mode=True, divisor_override=4)


class TensorFlowMaxPool(nn.Module):
    """3×3 maximum at stride 2, padded "SAME": even sides only at the bottom and right, odd ones on both."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


def _shortcut(inputs: int, outputs: int, stride: int, pooled: bool) -> nn.Sequential:
    if pooled:
        return nn.Sequential(ShortcutPool(stride), _conv(inputs, outputs, 1), BatchNorm2d(outputs))
    return nn.Sequential(_conv(inputs, outputs, 1, stride), BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (depths 10, 18 and 34). Selective kernels touch only its shortcut."""

    expansion = 1

    def __init__(
        self, inputs: int, filters: int, stride: int, projection: bool, sk_ratio: float | int, se_ratio: float | int
    ):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, filters, 3, stride), BatchNorm2d(filters)
        self.conv2, self.bn2 = _conv(filters, filters, 3), BatchNorm2d(filters)
        nn.init.zeros_(self.bn2.weight)
        self.se = SqueezeExcite(filters, filters, se_ratio) if se_ratio > 0 else None
        self.downsample = _shortcut(inputs, filters, stride, sk_ratio > 0) if projection else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.se is not None:
            y = self.se(y)
        return F.relu(y + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (or a selective kernel) and 1×1 convolutions, four times as wide at the end."""

    expansion = 4

    def __init__(
        self, inputs: int, filters: int, stride: int, projection: bool, sk_ratio: float | int, se_ratio: float | int
    ):
        super().__init__()
        outputs = self.expansion * filters
        self.conv1, self.bn1 = _conv(inputs, filters, 1), BatchNorm2d(filters)
        if sk_ratio > 0:
            self.conv2, self.bn2 = SelectiveKernel(filters, stride, sk_ratio), None
        else:
            self.conv2, self.bn2 = _conv(filters, filters, 3, stride), BatchNorm2d(filters)
        self.conv3, self.bn3 = _conv(filters, outputs, 1), BatchNorm2d(outputs)
        nn.init.zeros_(self.bn3.weight)
        self.se = SqueezeExcite(outputs, filters, se_ratio) if se_ratio > 0 else None
        self.downsample = _shortcut(inputs, outputs, stride, sk_ratio > 0) if projection else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.conv2(y)
        if self.bn2 is not None:
            y = F.relu(self.bn2(y), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.se is not None:
            y = self.se(y)
        return F.relu(y + shortcut, inplace=True)


class ResNet(nn.Module):
    """Images (B, channels, H, W) to pooled features (B, num_features). Made by `resnet`."""

    def __init__(
        self,
        depth: int,
        width: float | int,
        sk_ratio: float | int,
        se_ratio: float | int,
        stem: str,
        pad: str,
        channels: int,
    ):
        super().__init__()
        self.depth, self.width, self.sk_ratio, self.se_ratio = depth, width, sk_ratio, se_ratio
        self.stem, self.pad, self.channels = stem, pad, channels
        blocks, bottleneck = DEPTHS[depth]
        block = Bottleneck if bottleneck else BasicBlock
        base = round(64 * width)
        if stem in SMALL_STEMS:
            self.conv1 = nn.Conv2d(channels, base, 3, padding=SMALL_STEMS[stem], bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = _resnet_d_stem(channels, base) if sk_ratio > 0 else _conv(channels, base, 7, 2)
            self.maxpool = TensorFlowMaxPool() if pad == "tf" else nn.MaxPool2d(3, 2, padding=1)
        self.bn1 = BatchNorm2d(base)

        inputs = base
        for group, count in enumerate(blocks):
            filters, layers = base * 2**group, []
            for i in range(count):
                stride, outputs = 2 if group > 0 and i == 0 else 1, filters * block.expansion
                projection = i == 0 and (pad != "torchvision" or stride > 1 or inputs != outputs)
                layers.append(block(inputs, filters, stride, projection, sk_ratio, se_ratio))
                inputs = outputs
            self.add_module(f"layer{group + 1}", nn.Sequential(*layers))
        self.num_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, x: Float[Tensor, "b channels h w"]) -> Float[Tensor, "b features"]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return pooled(x)

    def stages(self, x: Float[Tensor, "b channels h w"]) -> dict[str, Tensor]:
        """Every intermediate the official SavedModels return, under their names, for layer-wise probes.

        `initial_conv` is taken before its norm; `block_group1..4` are (B, C, H, W), `final_avg_pool` is (B, D).
        """
        ends = {"initial_conv": self.conv1(x)}
        x = self.maxpool(F.relu(self.bn1(ends["initial_conv"]), inplace=True))
        ends["initial_max_pool"] = x
        for group, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            ends[f"block_group{group}"] = x = layer(x)
        ends["final_avg_pool"] = pooled(x)
        return ends


def _resnet_d_stem(channels: int, base: int) -> nn.Sequential:
    half = max(1, base // 2)
    return nn.Sequential(
        _conv(channels, half, 3, 2), BatchNorm2d(half), nn.ReLU(inplace=True),
        _conv(half, half, 3), BatchNorm2d(half), nn.ReLU(inplace=True),
        _conv(half, base, 3),
    )  # fmt: skip


def _initialise(conv: nn.Conv2d) -> None:
    """Keras `VarianceScaling()`: standard deviation 1/√fan-in *after* cutting the normal at two of its own."""
    std = math.sqrt(1 / conv.weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def resnet(
    depth: int,
    width: float | int = 1,
    sk_ratio: float | int = 0.0,
    se_ratio: float | int = 0.0,
    stem: str = "auto",
    image_size: int = 224,
    pad: str = "tf",
    channels: int = 3,
) -> ResNet:
    """The official SimCLR ResNet: images (B, channels, H, W) in [0, 1] to features (B, `.num_features`).

    depth: 18, 34, 50, 101, 152, 200; also 10, one block a group, our own for small experiments.
    width: multiplier of all channels; official 1, 2, 3, 4.
    sk_ratio: > 0 for selective kernels in bottlenecks (SimCLRv2: 0.0625) and ResNet-D stem and shortcuts.
    se_ratio: > 0 for squeeze-and-excitation.
    stem: "small" is one 3×3 convolution and no pooling, "auto" takes it for images of at most 32 pixels. "solo-learn"
        is the same, padded by two pixels, as in that library on CIFAR.
    pad: of the stem's max-pool; "tf" as official, "torch" as torchvision. They differ on even sides, that is
        at nearly every image size; odd sides are padded alike. "torchvision" also leaves out the projection shortcut
        that opens the first group of depths 10, 18 and 34, as torchvision's network does.
    """
    if depth not in DEPTHS:
        raise SettingError("depth", f"one of {', '.join(map(str, DEPTHS))}", depth)
    if round(64 * width) < 8:  # torch 2.14 crashes on a CPU in the backward pass of a strided convolution of 4 channels
        raise SettingError("width", "at least 1/8, which is 8 channels", width)
    if sk_ratio < 0 or se_ratio < 0:
        name, ratio = ("sk_ratio", sk_ratio) if sk_ratio < 0 else ("se_ratio", se_ratio)
        raise SettingError(name, "at least 0", ratio)
    choices = {"stem": (stem, ("auto", "imagenet", *SMALL_STEMS)), "pad": (pad, ("tf", "torch", "torchvision"))}
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise SettingError(name, f"one of {', '.join(allowed)}", value)
    if stem == "auto":
        stem = "small" if image_size <= 32 else "imagenet"
    return ResNet(depth, width, sk_ratio, se_ratio, stem, pad, channels)


def _register(depth: int) -> Callable[..., ResNet]:
    def build(
        pretrained: bool = False, num_classes: int = 0, in_chans: int = 3,
        pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **options,
    ) -> ResNet:  # fmt: skip
        if pretrained:
            remedy = "simclr convert reads the official checkpoints"
            raise SettingError("pretrained", f"false for simclr_resnet{depth}", pretrained, remedy)
        if num_classes != 0:
            raise SettingError("num_classes", f"0 for simclr_resnet{depth}, an encoder", num_classes)
        return resnet(depth, channels=in_chans, **options)

    build.__name__ = f"simclr_resnet{depth}"
    build.__doc__ = f"`simclr.models.resnet({depth})` by timm's name."
    return register_model(build)


for _depth in DEPTHS:
    _register(_depth)
