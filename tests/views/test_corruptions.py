"""Corruptions: drawn for each image, stronger with severity, and what their names say."""

import numpy as np
import pytest
import torch

from simclr.data import open_source
from simclr.views.corruptions import KINDS, SEVERITIES, corrupt, gaussian_blur, greyscale, normals, sobel


@pytest.fixture(scope="module")
def images():
    source = open_source("sample", "test")
    return torch.from_numpy(source.images[:24]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("kind", KINDS)
def test_severities_grow_and_pictures_repeat(images, kind):
    indices = np.arange(len(images))
    distance = [(corrupt(images, kind, s, indices) - images).square().mean().item() for s in SEVERITIES]
    if kind == "saturation":  # paler at the first three, stronger colour at the last two
        assert distance[0] < distance[1] < distance[2]
        assert distance[3] < distance[4]
    else:
        assert distance == sorted(distance)
    assert distance[0] > 0
    out = corrupt(images, kind, 3, indices)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    torch.testing.assert_close(corrupt(images[5:7], kind, 3, indices[5:7]), out[5:7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [8, 224])
def test_any_size_of_image(size):
    x = torch.rand(2, 3, size, size)
    for kind in KINDS:
        assert corrupt(x, kind, 5, np.arange(2)).shape == x.shape


def test_noise_is_normal_and_another_for_each_image():
    z = normals((3, 40, 40), np.arange(8), 0)
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert (z.abs() > 1.96).float().mean().item() == pytest.approx(0.05, abs=0.005)
    assert torch.corrcoef(z.flatten(1)).fill_diagonal_(0).abs().max() < 0.08


def test_blur_keeps_a_flat_image_and_the_mean_of_a_point():
    flat = torch.full((1, 3, 16, 16), 0.3)
    for kind in ("gaussian_blur", "defocus_blur", "motion_blur", "pixelate", "contrast"):
        torch.testing.assert_close(corrupt(flat, kind, 5, np.arange(1)), flat)
    point = torch.zeros(1, 3, 65, 65)
    point[..., 32, 32] = 1
    spread = gaussian_blur(point, 2 / 65, np.arange(1), 0)[0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-4)
    axis = torch.arange(65.0) - 32
    assert (spread.sum(0) * axis.square()).sum().item() == pytest.approx(4, rel=0.05)  # sigma of two pixels


def test_sobel_of_an_edge_and_of_a_slope():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    found = sobel(edge)[0, 0]
    assert (found[:, 3:5] == 1).all()
    assert (found[:, :3] == 0).all()
    slope = (torch.arange(8.0) / 20).expand(1, 3, 8, 8)
    torch.testing.assert_close(sobel(slope)[..., 1:-1, 1:-1], torch.full((1, 3, 6, 6), 0.1))


def test_grey_is_the_luma_of_the_views():
    x = torch.rand(2, 3, 4, 4)
    luma = 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(greyscale(x), luma[:, None].expand(2, 3, 4, 4))


def test_unknown_kinds_and_severities_are_named(images):
    with pytest.raises(ValueError):  # noqa: PT011
        corrupt(images, "snow", 1, np.arange(24))
    with pytest.raises(ValueError):  # noqa: PT011
        corrupt(images, "fog", 6, np.arange(24))
