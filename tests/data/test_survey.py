"""Statistics of images, and images spread over a source."""

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.survey import spread_images, survey
from simclr.errors import DataError


@pytest.fixture
def source(tmp_path):
    for k in range(6):
        pixels = np.full((10 + k, 20, 3), 40 * k, np.uint8)
        pixels[: 5 + k // 2, :, 1] = 40 * k + 20
        Image.fromarray(pixels if k != 4 else np.array(Image.open(tmp_path / "3.png"))).save(tmp_path / f"{k}.png")
    (tmp_path / "1.png").write_bytes(b"")
    return open_source(tmp_path, "all")


def test_statistics_and_errors_in_order(source):
    images, errors = survey(source, [5, 1, 0, 3, 4], threads=2, deviation=True, form=True)
    assert [image.row for image in images] == [5, 0, 3, 4] and [error.path for error in errors] == ["1.png"]
    assert [(image.height, image.width, image.side) for image in images[:2]] == [(15, 20, 15), (10, 20, 10)]
    assert images[2].digest == images[3].digest != images[0].digest
    assert images[1].deviation == pytest.approx(10 / 255)
    assert {image.form for image in images} == {"PNG RGB 8 bit"}
    (plain,), _ = survey(source, [0])
    assert plain.deviation is None and plain.form is None and plain.digest == images[1].digest


def test_an_unreadable_image_is_replaced_by_the_next(source):
    rows, images, errors = spread_images(source, 6)
    assert rows == [0, 2, 3, 4, 5] and len(images) == 5 and [error.path for error in errors] == ["1.png"]
    rows, _, errors = spread_images(source.select(np.array([1, 2, 3]), "all"), 1)
    assert rows == [1] and len(errors) == 1
    with pytest.raises(DataError) as error:
        spread_images(source.select(np.array([1]), "all"), 1)
    assert error.value.path == source.name
