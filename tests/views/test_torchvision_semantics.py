"""torchvision semantics against torchvision's own functions, with the same decisions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from simclr.views import Views
from simclr.views.draw import plain

BACKENDS = ("numba", "torch")
SIZE = 24
VIEWS = Views(size=SIZE, semantics="torchvision", blur_kernel=0.3)
LEVEL = 1 / 255


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 40, 57, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(1)
    smooth = rng.random((12, 3, 3, 3))
    up = torch.nn.functional.interpolate(torch.from_numpy(smooth), SIZE, mode="bicubic").permute(0, 2, 3, 1)
    return (up.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def as_float(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def neutral(n):
    sizes = np.tile([SIZE, SIZE], (n, 1))
    return plain(sizes, np.concatenate([0 * sizes, sizes], 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_resize_flip(images, backend):
    parameters = VIEWS.draw(np.arange(12), 0, 0, 0, images.shape[1:3])
    off = np.zeros(12, bool)
    parameters = replace(parameters, jitter=off, grey=off, blur=off)
    result = VIEWS.apply(images, parameters, backend)
    for i, (y, x, h, w) in enumerate(parameters.crop.tolist()):
        expected = F.resized_crop(as_float(images)[i], y, x, h, w, [SIZE, SIZE], antialias=True)
        expected = F.horizontal_flip(expected) if parameters.flip[i] else expected
        assert (result[i] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("column", "function"),
    [(0, F.adjust_brightness), (1, F.adjust_contrast), (2, F.adjust_saturation), (3, F.adjust_hue)],
)
def test_each_colour_operation(crops, column, function, backend):
    parameters = neutral(12)
    values = np.linspace(0.2, 1.8, 12) if column < 3 else np.linspace(-0.5, 0.5, 12)
    parameters.factors[:, column] = values
    result = VIEWS.colour(crops, replace(parameters, jitter=np.ones(12, bool)), backend)
    for i, value in enumerate(values):
        expected = function(as_float(crops)[i], float(value))
        assert (result[i] - expected).abs().max() < 2e-5
        # on bytes torchvision rounds, and averages whole grey levels
        assert (result[i] - function(as_float(crops)[i].mul(255).byte(), float(value)) / 255).abs().max() < 2 * LEVEL


@pytest.mark.parametrize("backend", BACKENDS)
def test_grey_and_blur(crops, backend):
    grey = VIEWS.colour(crops, replace(neutral(12), grey=np.ones(12, bool)), backend)
    assert (grey - F.rgb_to_grayscale(as_float(crops), 3)).abs().max() < 1e-5
    sigma = np.linspace(0.1, 2, 12).astype(np.float32)
    blurred = VIEWS.colour(crops, replace(neutral(12), blur=np.ones(12, bool), sigma=sigma), backend)
    taps = 2 * VIEWS.blur_radius + 1
    assert taps == 7
    for i in range(12):
        expected = F.gaussian_blur(as_float(crops)[i], [taps, taps], [float(sigma[i])])
        assert (blurred[i] - expected).abs().max() < 1e-5


def test_the_crop_sampler_has_torchvision_s_distribution():
    from scipy.stats import ks_2samp

    n, image = 4000, torch.zeros(3, 50, 80)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = v2.RandomResizedCrop(32)
        theirs = [transform.make_params([image]) for _ in range(n)]
    ours = Views(size=32, semantics="torchvision").draw(np.arange(n), 0, 0, 0, (50, 80)).crop
    for k, field in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(ours[:, k], [p[field] for p in theirs]).pvalue > 1e-3
