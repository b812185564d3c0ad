import numpy as np
import pytest

from simclr.views import Views
from simclr.views.operations import OPERATIONS, alone
from simclr.views.sheet import contact_sheet, operation_sheet


def images():
    return [np.full((h, w, 3), 40 * (i + 1), np.uint8) for i, (h, w) in enumerate([(30, 60), (60, 30), (5, 5)])]


def test_a_sheet_shows_each_original_and_its_pairs():
    views = Views(size=100, jitter=0.0, grey=0.0, blur=0.0)
    sheet = np.asarray(contact_sheet(images(), views, pairs=2))
    assert sheet.shape == (12 + 3 * 112, 12 + 112 + 2 * (204 + 12), 3)
    for i in range(3):
        row = sheet[12 + i * 112 :][:100]
        level = 40 * (i + 1)
        assert (row[50, [62, 124, 223, 228, 327, 340, 439, 444, 543]] == level).all()  # middles and edges of tiles
        assert (row[50, [11, 112, 123, 224, 227, 328, 339, 440, 443, 544]] == 255).all()  # the gaps between them
    assert (sheet[12 + 24, 12:112] == 255).all()  # the wide image fills half the height of its cell
    assert (sheet[12 + 26, 12:112] == 40).all()


def test_a_sheet_shows_the_views_of_training():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    views = Views(size=32)
    sheet = np.asarray(contact_sheet([image], views, seed=5, indices=[41], pairs=3))
    for epoch in range(3):
        for view in range(2):
            pixels = views.apply(image[None], views.draw(np.array([41]), epoch, view, 5))[0]
            left = 12 + 108 + epoch * (2 * 96 + 4 + 12) + view * 100
            tile = sheet[12 : 12 + 96 : 3, left : left + 96 : 3]  # enlarged three times
            np.testing.assert_allclose(tile, pixels.permute(1, 2, 0).numpy() * 255, atol=0.501)


def test_wrong_settings():
    with pytest.raises(ValueError):  # noqa: PT011
        contact_sheet([], Views(size=32))
    with pytest.raises(ValueError):  # noqa: PT011
        contact_sheet(images(), Views(size=32), pairs=0)
    with pytest.raises(ValueError):  # noqa: PT011
        operation_sheet([], Views(size=32))


def test_a_sheet_of_many_views_shows_each_at_its_size():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    policies = (Views(size=48), Views(size=48, blur=0.0), Views(size=24))
    sheet = np.asarray(contact_sheet([image], policies, pairs=2))
    assert sheet.shape == (12 + 108, 12 + 108 + 2 * (96 + 4 + 96 + 4 + 48 + 12), 3)
    pixels = policies[2].apply(image[None], policies[2].draw(np.array([0]), 1, 2, 0, (32, 32)))[0]
    left = 120 + 260 + 200
    np.testing.assert_allclose(sheet[12:60:2, left : left + 48 : 2], pixels.permute(1, 2, 0).numpy() * 255, atol=0.501)


def test_a_sheet_of_operations_shows_each_alone():
    image = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    views = Views(size=96, posterise_bits=(1, 1), grey=0.0)
    sheet = np.asarray(operation_sheet([image], views, seed=5, indices=[41]))
    assert sheet.shape == (16 + 12 + 108, 12 + 15 * 108, 3)
    for k, operation in enumerate(OPERATIONS, start=1):
        tile = sheet[28:124, 12 + k * 108 :][:, :96]
        policy = alone(views, operation.name)
        parameters = policy.draw(np.array([41]), 0, 0, 5, (40, 32))
        if operation.name != "crop":
            parameters.crop[:] = [4, 0, 32, 32]
        pixels = policy.apply(image[None], parameters)[0]
        np.testing.assert_allclose(tile, pixels.permute(1, 2, 0).numpy() * 255, atol=0.501)
    posterised = sheet[28:124, 12 + 108 * 9 :][:, :96]
    assert set(np.unique(posterised)) == {0, 128}
    grey = sheet[28:124, 12 + 108 * 4 :][:, :96]
    assert (grey[..., :1] == grey).all()
