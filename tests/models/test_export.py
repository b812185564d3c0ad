"""Exported weights load strictly into the other libraries' networks and give the same features."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from simclr.errors import SettingError
from simclr.models import create_encoder, resnet
from simclr.models.export import save_pt2, to_timm, to_torchvision
from simclr.models.resnet import SMALL_STEMS

pytestmark = pytest.mark.slow


def trained(depth=50, **options):
    """A network whose norms have statistics, gains and offsets to carry over."""
    torch.manual_seed(0)
    encoder = resnet(depth, **options).eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(0.5, 0.1)
    return encoder


def from_torchvision(encoder, **allowed):
    name, state = to_torchvision(encoder, **allowed)
    model = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    if padding := SMALL_STEMS.get(encoder.stem):
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=padding, bias=False), nn.Identity()
    model.load_state_dict(state, strict=True)
    return model.eval()


def from_timm(encoder, **allowed):
    name, state = to_timm(encoder, **allowed)
    model = timm.create_model(name, num_classes=0)
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.inference_mode()
def relative_difference(ours, theirs, size):
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    h = ours(x)
    return ((theirs(x) - h).abs().max() / h.abs().max()).item()


@pytest.mark.parametrize("other", [from_torchvision, from_timm])
def test_features_are_equal_with_the_same_padding(other):
    encoder = trained(pad="torch")
    assert relative_difference(encoder, other(encoder), 64) < 1e-6


@pytest.mark.parametrize("other", [from_torchvision, from_timm])
def test_basic_blocks_with_the_shortcuts_of_torchvision_are_exported(other):
    encoder = trained(18, pad="torchvision", width=1)
    assert relative_difference(encoder, other(encoder), 64) < 1e-6


def test_features_differ_by_the_padding_on_even_sides_only():
    encoder = trained(pad="tf")
    other = from_torchvision(encoder, allow_pad_difference=True)
    assert relative_difference(encoder, other, 66) < 1e-6  # the first convolution gives 33
    assert relative_difference(encoder, other, 64) > 1e-3


def test_a_small_stem_goes_into_a_network_with_its_stem_replaced():
    for encoder in (trained(stem="small"), trained(18, stem="solo-learn", pad="torchvision")):
        assert relative_difference(encoder, from_torchvision(encoder, allow_small_stem=True), 32) < 1e-6


def test_a_program_contains_the_normalisation(tmp_path):
    encoder = create_encoder("simclr_resnet10", 32, {"width": 0.125, "mean": [0.5] * 3, "std": [0.25] * 3}).eval()
    assert save_pt2(encoder, 32, tmp_path / "h.pt2", "{}") < 1e-4
    plain = create_encoder("simclr_resnet10", 32, {"width": 0.125}).eval()
    plain.load_state_dict(encoder.state_dict())
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "h.pt2").module()(x)
        torch.testing.assert_close(found, plain((x - 0.5) / 0.25), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depth": 50}, "allow_pad_difference"),
        ({"depth": 50, "stem": "small"}, "allow_small_stem"),
        ({"depth": 50, "sk_ratio": 0.0625}, ""),
        ({"depth": 50, "se_ratio": 0.25}, ""),
        ({"depth": 50, "width": 2}, "width=2"),
        ({"depth": 18}, "resnet18"),
        ({"depth": 10}, "10"),
    ],
)
def test_what_torchvision_cannot_hold_is_refused(options, named):
    with torch.device("meta"):
        encoder = resnet(**options)
    with pytest.raises(SettingError) as refused:
        to_torchvision(encoder)
    assert refused.value.field == "to"
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_encoders_are_refused():
    with pytest.raises(SettingError) as refused:
        to_timm(create_encoder("resnet18", 32))
    assert refused.value.field == "to"


def test_a_program_whose_output_differs_is_not_written(tmp_path, monkeypatch):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    assert save_pt2(network, 4, tmp_path / "good.pt2", "{}") < 1e-6

    class Other:
        def module(self):
            return lambda images: network(images) + 1e-3

    monkeypatch.setattr(torch.export, "load", lambda file: Other())
    with pytest.raises(RuntimeError):
        save_pt2(network, 4, tmp_path / "other.pt2", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["good.pt2"]
