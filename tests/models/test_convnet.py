"""The plain convolutional network."""

import pytest
import torch
from torch.nn import functional as F

from simclr.errors import SettingError
from simclr.models import ConvNet, create_encoder


def test_features_are_convolutions_norms_and_rectified_means():
    torch.manual_seed(0)
    encoder = create_encoder("simclr_convnet", 12, {"widths": [8, 16], "features": 24}).double()
    x = torch.rand(5, 3, 12, 12, dtype=torch.float64)
    y = x
    for i, convolution in enumerate(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)):
        y = F.conv2d(y, convolution.weight, stride=[1, 2, 1][i], padding=[1, 1, 0][i])
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        y = torch.relu((y - mean) / torch.sqrt(variance + encoder.layers[1].eps))
    torch.testing.assert_close(encoder(x), y.mean((2, 3)))
    assert encoder.num_features == 24
    assert ConvNet([8, 16], features=0).num_features == 16


def test_images_of_any_number_of_channels_and_any_size():
    encoder = ConvNet([8, 8], features=0, in_chans=5)
    assert encoder(torch.rand(2, 5, 7, 9)).shape == (2, 8)


@pytest.mark.parametrize("options", [{"widths": []}, {"widths": [4, 8]}, {"features": 4}, {"depth": 3}])
def test_wrong_options_are_refused(options):
    with pytest.raises(SettingError):
        create_encoder("simclr_convnet", 16, options)
