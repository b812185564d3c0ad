"""Details of the networks against their definitions."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from simclr.errors import SettingError
from simclr.models import resnet
from simclr.models.resnet import DEPTHS, SelectiveKernel, ShortcutPool, SqueezeExcite, TensorFlowMaxPool, pooled


def same_padding(side):
    """TensorFlow's SAME for a window of 3 at stride 2: total padding, the smaller half first."""
    total = max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize(("h", "w"), [(8, 8), (7, 7), (7, 8), (8, 5), (1, 2), (2, 1)])
def test_stem_pooling_pads_as_tensorflow(h, w):
    x = torch.randn(2, 3, h, w)
    padded = F.pad(x, (*same_padding(w), *same_padding(h)), value=-torch.inf)
    assert torch.equal(TensorFlowMaxPool()(x), F.max_pool2d(padded, 3, 2))


@pytest.mark.parametrize(("h", "w"), [(8, 8), (7, 7), (7, 8), (1, 1)])
def test_shortcut_pooling_counts_padding_only_at_stride_two(h, w):
    x = torch.randn(2, 3, h, w, dtype=torch.float64)
    padded = F.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(ShortcutPool(2)(x), F.avg_pool2d(padded, 2, 2))
    counts = F.avg_pool2d(F.pad(torch.ones_like(x), (0, 1, 0, 1)), 2, 1)
    torch.testing.assert_close(ShortcutPool(1)(x), F.avg_pool2d(padded, 2, 1) / counts)


def test_the_gradient_of_the_mean_over_positions_lies_as_the_features_do():
    x = torch.randn(4, 16, 3, 5).to(memory_format=torch.channels_last)
    received = []
    for mean in (pooled, lambda values: values.double().mean((2, 3))):
        values = x.clone().requires_grad_()
        features = values * 1
        features.register_hook(received.append)
        y = mean(features)
        y.backward(torch.arange(64.0).view(4, 16).to(y.dtype))
        torch.testing.assert_close(y.double(), x.double().mean((2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(received[0], received[1].float())
    assert received[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled(x), pooled(x.clone().requires_grad_()))


def test_squeeze_excite_gates_channels_by_their_means():
    gate = SqueezeExcite(8, 4, 0.25).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    assert gate.reduce.out_channels == 1  # of the block's own filters, before their expansion
    hidden = (x.mean((2, 3)) @ gate.reduce.weight.flatten(1).T + gate.reduce.bias).clamp_min(0)
    weights = torch.sigmoid(hidden @ gate.expand.weight.flatten(1).T + gate.expand.bias)
    torch.testing.assert_close(gate(x), x * weights[..., None, None])


def test_selective_kernel_mixes_two_streams_with_weights_that_sum_to_one():
    layer = SelectiveKernel(16, 1, 0.0625).eval()
    assert layer.reduce.out_channels == 32
    assert SelectiveKernel(1024, 2, 0.0625).reduce.out_channels == 64
    x = torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        layer.conv.weight[16:] = layer.conv.weight[:16]  # equal streams: any mixture is the stream itself
        stream = F.relu(layer.bn(layer.conv(x)))[:, :16]
        torch.testing.assert_close(layer(x), stream)


@pytest.mark.parametrize("depth", [18, 50])
def test_initial_weights_are_those_of_the_official_code(depth):
    torch.manual_seed(0)
    encoder = resnet(depth, width=0.5, sk_ratio=0.0625, se_ratio=0.25)
    last = "bn2" if depth == 18 else "bn3"
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            w = module.weight
            std, n = math.sqrt(1 / w[0].numel()), w.numel()
            assert w.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
            assert abs(w.mean().item()) < 5 * std / math.sqrt(n)
            assert w.abs().max().item() <= 2 * std / 0.8796 + 1e-6  # cut at two deviations of the uncut normal
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            expected = 0 if name.endswith(last) and name.startswith("layer") else 1
            assert torch.all(module.weight == expected)
            assert not module.bias.any()
            assert (module.eps, module.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize(("depth", "channels"), [(18, 8), (50, 32)])
def test_a_fresh_block_passes_only_its_shortcut(depth, channels):
    encoder = resnet(depth, width=0.125).eval()
    x = torch.rand(2, channels, 6, 6)
    torch.testing.assert_close(encoder.layer1[1](x), x)


def test_the_small_stem_is_for_images_of_at_most_32_pixels():
    for size, stem in ((32, "small"), (33, "imagenet")):
        assert resnet(10, width=0.125, image_size=size).stem == stem
    x = torch.rand(1, 3, 32, 32)
    shapes = {k: v.shape[-1] for k, v in resnet(10, 0.125, stem="small").stages(x).items()}
    assert list(shapes.values()) == [32, 32, 32, 16, 8, 4, 8 * 8]


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_is_an_encoder_of_timm(depth):
    encoder = timm.create_model(
        f"simclr_resnet{depth}", num_classes=0, width=0.125, sk_ratio=0.0625, se_ratio=0.25, stem="small"
    )
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, encoder.num_features)
    assert encoder.num_features == 64 * (4 if depth >= 50 else 1)


def test_any_width_and_number_of_channels():
    encoder = resnet(18, width=0.3, sk_ratio=0.0625, channels=1)
    assert encoder.num_features == 8 * 19
    assert encoder(torch.rand(2, 1, 40, 56)).shape == (2, 8 * 19)


def test_memory_format_changes_nothing():
    encoder = resnet(50, width=0.125, sk_ratio=0.0625, stem="imagenet").double()
    x = torch.rand(4, 3, 40, 40, dtype=torch.float64)
    h = encoder(x)
    encoder = encoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(x.contiguous(memory_format=torch.channels_last)), h)


def test_stages_end_in_the_features_and_keep_their_values():
    encoder = resnet(18, width=0.125)
    x = torch.rand(4, 3, 64, 64)
    ends = encoder.stages(x)
    torch.testing.assert_close(ends["final_avg_pool"], encoder(x))
    torch.testing.assert_close(ends["initial_conv"], encoder.conv1(x))  # not overwritten by what follows
    torch.testing.assert_close(ends["block_group2"], encoder.layer2(ends["block_group1"]))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"depth": 51}, "depth"),
        ({"depth": 50, "width": 0.001}, "width"),
        ({"depth": 50, "sk_ratio": -1}, "sk_ratio"),
        ({"depth": 50, "se_ratio": -1}, "se_ratio"),
        ({"depth": 50, "stem": "cifar"}, "stem"),
        ({"depth": 50, "pad": "same"}, "pad"),
    ],
)
def test_wrong_settings_name_the_field(options, field):
    with pytest.raises(SettingError) as refused:
        resnet(**options)
    assert refused.value.field == field


@pytest.mark.parametrize("options", [{"pretrained": True}, {"num_classes": 10}])
def test_timm_entry_points_have_neither_weights_nor_classifier(options):
    with pytest.raises(SettingError) as refused:
        timm.create_model("simclr_resnet18", **options)
    assert [refused.value.field] == list(options)
