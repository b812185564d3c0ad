"""The random decisions: their distributions, and that they are functions of what they are for."""

from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import chi2, ks_2samp, kstest

from simclr.randomness import uniforms
from simclr.views import Views

N = 20_000
IMAGES = np.arange(N)


@pytest.fixture(scope="module")
def drawn():
    return Views(size=32).draw(IMAGES, epoch=3, view=1, seed=7)


def within_three_errors(sample, expected):
    return abs(sample.mean() - expected) < 3 * sample.std() / np.sqrt(len(sample))


@pytest.mark.parametrize("size", [(32, 32), (256, 320), (500, 375), (224, 224), (375, 500)])
def test_official_crops_have_the_official_distribution(golden, size):
    official = golden("aug_stats.npz")[f"crop_yxhw_{size[0]}x{size[1]}"].astype(np.int64)
    ours = Views(size=224).draw(IMAGES, 0, 0, 1, size).crop

    def measures(crop):
        y, x, h, w = crop.T
        return dict(y=y, x=x, h=h, w=w, area=h * w, aspect=w / h, middle_y=2 * y + h, middle_x=2 * x + w)

    for name, ours_k, official_k in zip(
        measures(ours), measures(ours).values(), measures(official).values(), strict=True
    ):
        assert ks_2samp(ours_k, official_k).pvalue > 1e-3, name
        error = np.hypot(ours_k.std() / np.sqrt(N), official_k.std() / np.sqrt(len(official)))
        assert abs(ours_k.mean() - official_k.mean()) < 3 * error, name
    y, x, h, w = ours.T
    assert ((y == 0) & (x == 0) & (h == size[0]) & (w == size[1])).mean() < 0.01
    assert (h * w).min() >= 0.1 * size[0] * size[1]


@pytest.mark.parametrize("size", [(224, 224), (500, 375), (3, 5), (1, 1), (1, 50), (90, 2)])
@pytest.mark.parametrize("semantics", ["official", "torchvision"])
def test_crops_lie_in_the_image(size, semantics):
    y, x, h, w = Views(size=32, semantics=semantics).draw(IMAGES[:2000], 0, 0, 0, size).crop.T
    assert min(y.min(), x.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (y + h).max() <= size[0]
    assert (x + w).max() <= size[1]
    if semantics == "official":  # the last offset is never chosen
        assert ((y + h < size[0]) | (h == size[0])).all()
        assert ((x + w < size[1]) | (w == size[1])).all()
    elif min(size) > 3:  # and here it is
        assert (y + h == size[0]).any()
        assert (x + w == size[1]).any()


def test_the_whole_image_after_a_hundred_attempts():
    crop = Views(size=32).draw(IMAGES[:100], 0, 0, 0, (1, 50)).crop
    assert (crop == [0, 0, 1, 50]).all()


def test_the_central_crop_after_ten_attempts():
    crop = Views(size=32, semantics="torchvision").draw(IMAGES[:100], 0, 0, 0, (10, 500)).crop
    assert (crop == [0, 243, 10, 13]).all()  # 13 = round(10 * 4/3), 243 = (500 - 13) // 2


def test_torchvision_crops_have_a_uniform_area_and_a_log_uniform_aspect():
    views = Views(size=32, semantics="torchvision", crop_area=(0.08, 0.5))  # no attempt is rejected below 0.56
    y, x, h, w = views.draw(IMAGES, 0, 0, 0, (4000, 4000)).crop.T
    assert kstest(h * w / 4000**2, "uniform", (0.08, 0.42)).pvalue > 1e-3
    assert kstest(np.log(w / h), "uniform", (np.log(0.75), np.log(16 / 9))).pvalue > 1e-3
    assert kstest(y / (4001 - h), "uniform").pvalue > 1e-3
    assert kstest(x / (4001 - w), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_probabilities(p):
    parameters = Views(size=32, flip=p, jitter=p, grey=p, blur=p).draw(IMAGES, 0, 0, 0)
    columns = [parameters.flip, parameters.jitter, parameters.grey, parameters.blur]
    for column in columns:
        assert abs(column.mean() - p) <= 3 * np.sqrt(p * (1 - p) / N)
    if 0 < p < 1:  # and they are drawn independently
        assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 4 / np.sqrt(N)


def test_default_probabilities(drawn):
    for column, p in ((drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.grey, 0.2), (drawn.blur, 0.5)):
        assert within_three_errors(column, p)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_jitter_factors(golden, strength):
    official = golden("aug_stats.npz")[f"jitter_factors_strength_{strength}"]
    factors = Views(size=32, strength=strength).draw(IMAGES, 0, 0, 0).factors
    for k, half in enumerate([0.8 * strength] * 3 + [0.2 * strength]):
        assert ks_2samp(factors[:, k], official[:, k]).pvalue > 1e-3
        middle = 1 if k < 3 else 0
        assert kstest(factors[:, k], "uniform", (middle - half, 2 * half)).pvalue > 1e-3


def test_every_order_is_as_likely(drawn):
    _, counts = np.unique(drawn.order @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert (np.sort(drawn.order, 1) == range(4)).all()
    assert chi2.sf(((counts - N / 24) ** 2 / (N / 24)).sum(), 23) > 1e-3


def test_blur_sigma(drawn, golden):
    assert ks_2samp(drawn.sigma, golden("aug_stats.npz")["blur_sigma"]).pvalue > 1e-3
    assert kstest(drawn.sigma, "uniform", (0.1, 1.9)).pvalue > 1e-3


def test_lower_limits_of_the_factors():
    strong = dict(size=32, strength=2.0)
    low = Views(**strong).draw(IMAGES, 0, 0, 0).factors.min(0)
    np.testing.assert_allclose(low, [0, -0.6, -0.6, -0.4], atol=2e-3)  # 1 - 0.8 × 2; only brightness stops at 0
    low = Views(**strong, semantics="torchvision").draw(IMAGES, 0, 0, 0).factors.min(0)
    np.testing.assert_allclose(low, [0, 0, 0, -0.4], atol=2e-3)
    added = Views(size=32, strength=0.5, brightness_form="add").draw(IMAGES, 0, 0, 0).factors[:, 0]
    assert kstest(added, "uniform", (-0.4, 0.8)).pvalue > 1e-3


def test_draws_differ_between_images_views_epochs_and_seeds():
    views = Views(size=32)
    names = [(e, v, s) for e in range(2) for v in range(2) for s in range(2)]
    sigma = np.stack([views.draw(IMAGES[:1000], e, v, s).sigma for e, v, s in names])
    u = np.stack([uniforms(s, e, IMAGES[:1000], v, 28) for e, v, s in names])
    assert len(np.unique(u)) == u.size
    assert len(np.unique(sigma)) > 0.999 * sigma.size  # float32 may meet by chance
    assert np.abs(np.corrcoef(u.transpose(0, 2, 1).reshape(-1, 1000)) - np.eye(8 * 28)).max() < 0.15


def test_a_draw_is_a_function_of_its_name_alone(drawn):
    views, some = Views(size=32), np.array([19_999, 3, 77, 3])
    again = views.draw(some, epoch=3, view=1, seed=7)
    for field in vars(drawn):
        np.testing.assert_array_equal(getattr(again, field), getattr(drawn[some], field))
    # sizes may differ from image to image without touching the neighbours
    sizes = np.array([[32, 32], [40, 9], [32, 32], [300, 200]])
    mixed = views.draw(some, epoch=3, view=1, seed=7, sizes=sizes)
    np.testing.assert_array_equal(mixed.crop[[0, 2]], again.crop[[0, 2]])
    np.testing.assert_array_equal(mixed.crop[1], views.draw(some[1:2], 3, 1, 7, (40, 9)).crop[0])


def test_subsets_of_parameters(drawn):
    assert len(drawn[5:9]) == 4
    assert len(drawn[np.int64(5)]) == 1
    np.testing.assert_array_equal(drawn[5].crop, drawn.crop[5:6])
    np.testing.assert_array_equal(drawn[drawn.blur].sigma, drawn.sigma[drawn.blur])


@pytest.mark.parametrize("semantics", ["official", "torchvision"])
def test_all_views_of_an_image_are_drawn_as_each_alone(semantics):
    views, images = Views(size=32, semantics=semantics), np.array([4, 0, 77])
    sizes = np.array([[40, 30], [32, 32], [500, 375]])
    for v, together in enumerate(views.draw_together(images, epoch=2, count=3, seed=5, sizes=sizes).split(3)):
        alone = views.draw(images, epoch=2, view=v, seed=5, sizes=sizes)
        for field in fields(together):
            np.testing.assert_array_equal(getattr(together, field.name), getattr(alone, field.name))


@pytest.mark.parametrize("semantics", ["official", "torchvision"])
def test_the_ratio_of_a_crop_is_its_width_by_its_height(semantics):
    views = Views(size=32, semantics=semantics, crop_ratio=(1.5, 2.0), crop_area=(0.1, 0.4))
    _, _, h, w = views.draw(IMAGES[:2000], 0, 0, 0, (4000, 4000)).crop.T
    assert 1.499 < (w / h).min() < 1.51
    assert 1.99 < (w / h).max() < 2.001
