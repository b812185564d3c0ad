"""Whole sources in memory."""

import numpy as np

from simclr.data import open_source
from simclr.data.in_memory import decode_all


def test_images_that_turn_out_too_large_are_not_decoded():
    """The images that are measured first are smaller than the others."""
    first = np.linspace(0, 99, 32).round().astype(int)
    images = [np.full((4 if i in first else 20, 5, 3), i, np.uint8) for i in range(100)]
    total, guess = sum(image.nbytes for image in images), 100 * images[0].nbytes
    assert guess < total
    source = open_source(images, "all")
    assert decode_all(source, total - 1) is None
    assert decode_all(source, guess) is None
    found = decode_all(source, total)
    assert all(np.array_equal(one, other) for one, other in zip(found, images, strict=True))
