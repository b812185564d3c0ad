"""Encoders by name."""

import pytest
import timm
import torch

from simclr.errors import SettingError
from simclr.models import create_encoder


@pytest.mark.parametrize(
    ("name", "size", "options", "features"),
    [
        ("simclr_resnet18", 32, {"width": 0.125}, 64),
        ("simclr_resnet50", 64, {"width": 0.125, "sk_ratio": 0.0625}, 256),
        ("resnet18", 64, {}, 512),
        ("mobilenetv3_small_050", 64, {}, 1024),  # timm's num_features is 288, before its last hidden layer
        ("vit_tiny_patch16_224", 64, {"depth": 1}, 192),  # a grid for 64 pixels rather than 224
        ("resnet10t", 64, {"global_pool": "catavgmax"}, 1024),
    ],
)
def test_features_are_as_long_as_the_encoder_says(name, size, options, features):
    encoder = create_encoder(name, size, options)
    assert encoder.training
    assert encoder.num_features == features
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, features)


def test_the_image_size_settles_the_stem():
    assert create_encoder("simclr_resnet18", 32, {"width": 0.125}).stem == "small"
    assert create_encoder("simclr_resnet18", 64, {"width": 0.125}).stem == "imagenet"
    assert create_encoder("simclr_resnet18", 64, {"width": 0.125, "stem": "small"}).stem == "small"


@pytest.mark.parametrize(
    ("name", "options", "field", "named"),
    [
        ("simclr_resnet51", {}, "encoder", "simclr_resnet50"),
        ("resnet_18", {}, "encoder", "resnet18"),
        ("qqqqqqqq", {}, "encoder", "timm.list_models"),
        ("qqqqqqqq", {}, "encoder", "simclr_convnet"),
        ("hf-hub:timm/resnet18.a1_in1k", {}, "encoder", "hf-hub"),
        ("simclr_resnet18", {"wdth": 2}, "encoder_options.wdth", "width, sk_ratio, se_ratio, stem, pad"),
        ("resnet18", {"width": 2}, "encoder_options.width", "width"),
        ("resnet18", {"act_layer": "none such"}, "encoder_options.act_layer", "resnet18"),
        ("resnet18", {"act_layer": "none_such"}, "encoder_options", "resnet18"),
        ("simclr_resnet18", {"stem": "cifar"}, "stem", "cifar"),
        ("simclr_resnet18", {"width": 0.001}, "width", "0.001"),
        ("resnet18", {"global_pool": ""}, "encoder", "(1, 512, 1, 1)"),
    ],
)
def test_wrong_names_and_options_name_the_setting(name, options, field, named):
    with pytest.raises(SettingError) as refused:
        create_encoder(name, 32, options)
    assert refused.value.field == field
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_is_downloaded(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise AssertionError("an encoder asked the network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    create_encoder("resnet18.a1_in1k", 32)
    assert timm.is_model("resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simclr_resnet10", {"width": 0.125}),
        ("simclr_resnet50", {"width": 0.125, "sk_ratio": 0.0625}),
        ("resnet18", {}),
    ],
)
def test_images_are_normalised_at_the_input_and_tensors_keep_their_names(name, options):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    plain = create_encoder(name, 64, options).eval()
    normalised = create_encoder(name, 64, {**options, "mean": mean, "std": std}).eval()
    normalised.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64)
    prepared = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(normalised(x), plain(prepared))
        if hasattr(plain, "stages"):
            stages = plain.stages(prepared)
            assert all(torch.equal(value, stages[stage]) for stage, value in normalised.stages(x).items())
        assert normalised.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [{"mean": [0.5] * 3}, {"mean": [0.5], "std": [1.0]}, {"mean": [0.5] * 3, "std": [1.0, 0.0, 1.0]},
     {"mean": [0.5] * 3, "std": ["1"] * 3}, {"mean": 0.5, "std": 1.0}, {"mean": [0.5] * 3, "std": [float("nan")] * 3}],
)  # fmt: skip
def test_a_wrong_normalisation_names_the_setting(options):
    for name in ("simclr_resnet10", "resnet18"):
        with pytest.raises(SettingError) as refused:
            create_encoder(name, 32, options)
        assert refused.value.field == "encoder_options.mean"
