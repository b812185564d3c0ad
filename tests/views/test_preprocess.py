import numpy as np
import pytest
import torch

from simclr.errors import SettingError
from simclr.views.preprocess import Preprocess


@pytest.mark.parametrize(
    ("size", "image", "box"),
    [
        (224, (500, 375), (86, 24, 328, 328)),  # 0.875 × 375 = 328.125
        (224, (256, 256), (16, 16, 224, 224)),
        (64, (100, 300), (6, 106, 88, 88)),  # 87.5 rounds to even
        (64, (1, 1), (0, 0, 1, 1)),
        (32, (500, 375), (0, 0, 500, 375)),
    ],
)
def test_the_part_that_is_kept(size, image, box):
    assert Preprocess(size).box(*image) == box


def test_small_images_of_the_right_size_are_left_alone():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(Preprocess(32).batch(images), expected, atol=1e-6, rtol=0)
    assert Preprocess(32).batch(images[:, :20, :30]).shape == (4, 3, 32, 32)


def test_one_by_one_and_in_a_batch():
    images = np.random.default_rng(0).integers(0, 256, (3, 90, 70, 3), dtype=np.uint8)
    preprocess = Preprocess(64, crop=0.6)
    batch = preprocess.batch(torch.from_numpy(images))
    for i, image in enumerate(images):
        assert torch.equal(preprocess(image), batch[i])


def test_wrong_settings():
    for field, settings in {"size": {"size": 0}, "crop": {"size": 32, "crop": 1.5}}.items():
        with pytest.raises(SettingError) as error:
            Preprocess(**settings)
        assert error.value.field == f"preprocess.{field}"
