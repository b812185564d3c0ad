"""Fused views equal the operations on groups of images, for every policy and number of channels."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from simclr.views import Views
from simclr.views.fused import as_rows, views_of

POLICIES = {
    "official": Views(size=12),
    "torchvision": Views(size=12, semantics="torchvision", strength=0.5, grey=0.5),
    "added brightness, always blurred": Views(size=16, blur=1.0, brightness_form="add"),
    "torchvision's blur": Views(size=16, semantics="torchvision", blur=0.5, jitter=1.0),
    "crops alone": Views(size=12, jitter=0.0, grey=0.0, blur=0.0, flip=0.0),
}


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", POLICIES)
def test_fused_views_equal_those_of_groups(name, channels):
    policy = POLICIES[name]
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 20, 18, channels), dtype=np.uint8))
    drawn = policy.draw_together(np.arange(30), 2, 2, 7, (20, 18))
    expected = policy.apply(images, drawn, "torch", layout="channels last")
    found = views_of(images, torch.from_numpy(as_rows(drawn)), policy.style, cropped=False)
    assert torch.equal(found, expected)

    crops = images[:, : policy.size, : policy.size]
    expected = policy.colour(crops, drawn, "torch", layout="channels last")
    found = views_of(crops, torch.from_numpy(as_rows(drawn)), policy.style, cropped=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # rounding, amplified by the saturation


PROGRAM = """
import numpy as np
from simclr.views import Views
policy = Views(size=8)
images = np.random.default_rng(0).integers(0, 256, (16, 10, 10, 3), dtype=np.uint8)
drawn = policy.draw(np.arange(16), 0, 0, 0, (10, 10))
difference = policy.apply(images, drawn, "compiled") - policy.apply(images, drawn, "torch")
print(difference.abs().max().item())
"""


@pytest.mark.slow
def test_the_compiled_function_computes_the_same():
    """In a process of its own, where annotations are not checked."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2e-6
