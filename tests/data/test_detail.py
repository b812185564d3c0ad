"""Detail of images: waves are lost below two pixels a period and kept above, whatever the size of the image."""

import numpy as np
import pytest

from simclr.data.detail import contrast_lost


def wave(side: int, periods: int) -> np.ndarray:
    """Return an image (side, side + 20, 3) with this many periods over its central square."""
    x = (np.arange(side + 20) - 10 + 0.5) / side
    row = 128 + 100 * np.sin(2 * np.pi * periods * x)
    return np.broadcast_to(row[None, :, None], (side, side + 20, 3)).round().astype(np.uint8)


@pytest.mark.parametrize("side", [96, 700])
def test_waves_shorter_than_two_pixels_are_lost(side):
    lost = contrast_lost([wave(side, 12)], [16, 64])
    assert lost[16] > 0.9  # 24 pixels would be needed
    assert lost[64] < 0.1


def test_nothing_is_lost_from_the_side_of_the_images_on_and_the_mean_is_over_images():
    assert contrast_lost([wave(32, 3)], [32, 64]) == {32: 0.0, 64: 0.0}
    one, other = (contrast_lost([wave(64, n)], [24])[24] for n in (2, 10))
    both = contrast_lost([wave(64, 2), np.full((64, 64, 3), 7, np.uint8), wave(64, 10)], [24])[24]
    assert both == pytest.approx((one + other) / 2)
    assert contrast_lost([np.zeros((9, 9, 1), np.uint8)], [4]) == {4: 0.0}
