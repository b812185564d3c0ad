"""A miniature shows the image without its brightness and contrast, at any size."""

import numpy as np
import pytest

from simclr.data.miniature import SIDE, miniature


def test_a_miniature_of_whole_blocks_is_their_colours():
    """Of an image of SIDE x SIDE blocks of one colour each, sampled at SIDE pixels, at any brightness and contrast."""
    blocks = np.random.default_rng(0).integers(0, 100, (SIDE, SIDE, 3))
    centred = blocks - blocks.mean()
    for change in (blocks, 2 * blocks + 20):
        np.testing.assert_allclose(miniature(change.astype(np.uint8)), centred / np.linalg.norm(centred), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_is_mirrored_with_the_image_and_does_not_depend_on_the_type(channels):
    image = np.random.default_rng(1).integers(0, 256, (37, 50, channels), np.uint8)
    small = miniature(image)
    assert np.linalg.norm(small) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(miniature(image[:, ::-1]), small[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(miniature((image / 255).astype(np.float32)), small, atol=1e-5)


def test_an_image_of_one_colour_shows_nothing():
    assert not miniature(np.full((20, 30, 3), 7, np.uint8)).any()
