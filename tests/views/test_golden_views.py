"""Views against arrays written by the official TensorFlow code."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr.views import ViewParameters, Views
from simclr.views import cpu_colour as pixels
from simclr.views import torch_backend as tensor
from simclr.views.draw import plain
from simclr.views.preprocess import Preprocess

BACKENDS = ("numba", "torch")
FACTORS = {"brightness_v2": 0, "contrast": 1, "saturation": 2, "hue": 3, "brightness_v1": 0}
NEUTRAL = np.array([1, 1, 1, 0], np.float32)


def planes(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1).reshape(3, -1))


def jitter(image, order, factors, additive, backend):
    """The jitter of one float image (H, W, 3), values beyond [0, 1] included."""
    order, factors = np.asarray(order, np.uint8), np.asarray(factors, np.float32)
    if backend == "numba":
        x = planes(image)
        pixels.jitter(x, order, factors, additive, False)
        return x.reshape(3, *image.shape[:2]).transpose(1, 2, 0)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].clone()
    turns = [[torch.arange(int(k == operation)) for k in range(4)] for operation in order]
    tensor.jitter(x, turns, torch.from_numpy(factors)[None], additive, False)
    return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", FACTORS)
@pytest.mark.parametrize("image", "ABCG")
def test_each_operation_with_its_clip(golden, op, image, backend):
    arrays = golden("aug_ops.npz")
    source = arrays[f"img_{image}"]
    additive, column = op == "brightness_v1", FACTORS[op]
    # neutral operations come after the one under test, where they find values in [0, 1] and leave them
    order = [column] + [k for k in range(4) if k != column]
    for factor, expected in zip(arrays[f"factors_{op}"], arrays[f"op_{op}_{image}"], strict=True):
        factors = NEUTRAL.copy()
        factors[0] = 0 if additive else 1
        factors[column] = factor
        result = jitter(source, order, factors, additive, backend)
        np.testing.assert_allclose(result, expected.clip(0, 1), atol=3e-6)


@pytest.mark.parametrize("image", "ABCG")
def test_grey_weights(golden, image):
    arrays = golden("aug_ops.npz")
    source, expected = arrays[f"img_{image}"], arrays[f"op_grayscale_{image}"]
    x = planes(source)
    pixels.greyscale(x)
    np.testing.assert_allclose(x.reshape(3, *source.shape[:2]).transpose(1, 2, 0), expected, atol=1e-6)
    grey = tensor.greyscale(torch.from_numpy(source).permute(2, 0, 1)[None])
    np.testing.assert_allclose(grey[0, 0].numpy(), expected[..., 0], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("impl", "image", "out"),
    [
        ("simclrv2", "B", "jitter_rand_simclrv2_out"),
        ("simclrv1", "B", "jitter_rand_simclrv1_out"),
        ("simclrv2", "C", "jitter_rand_simclrv2_out_C"),
    ],
)
def test_jitter_in_every_order(golden, impl, image, out, backend):
    arrays = golden("aug_ops.npz")
    orders, factors = arrays["jitter_rand_perms"], arrays[f"jitter_rand_{impl}_factors"]
    for order, row, expected in zip(orders, factors, arrays[out], strict=True):
        result = jitter(arrays[f"img_{image}"], order, row, impl == "simclrv1", backend)
        np.testing.assert_allclose(result, expected, atol=5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jitter_in_fixed_order(golden, backend):
    arrays = golden("aug_ops.npz")
    expected = arrays["jitter_nonrand_simclrv2_out"]
    for row, out in zip(arrays["jitter_rand_simclrv2_factors"], expected, strict=False):
        result = jitter(arrays["img_B"], range(4), row, False, backend)
        np.testing.assert_allclose(result, out, atol=5e-6)


def square(image, radius):
    """The image on a black square with space for what the blur carries over its edge."""
    height, width, _ = image.shape
    canvas = np.zeros((3, max(height, width) + radius, max(height, width) + radius), np.float32)
    canvas[:, :height, :width] = image.transpose(2, 0, 1)
    return canvas


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", range(11))
def test_blur(golden, case, backend):
    arrays = golden("aug_ops.npz")
    image, (kernel_size, sigma) = arrays["img_A"], arrays["blur_params"][case]
    radius = int(kernel_size / 2)
    x = square(image, radius)
    if radius == 0:
        assert np.abs(arrays[f"blur_{case}"] - image).max() < 1e-6
        return
    if backend == "numba":
        memory = pixels.work_space(x.shape[1], radius)
        for part in memory:
            part[:] = np.nan
        pixels.blur(x, np.float32(sigma), radius, False, memory)
    else:
        matrix = tensor.blur_matrix(torch.tensor([sigma], dtype=torch.float32), x.shape[1], radius, False)
        x = tensor.blur(torch.from_numpy(x)[None], matrix)[0].numpy()
    result = x.transpose(1, 2, 0)[: image.shape[0], : image.shape[1]]
    np.testing.assert_allclose(result, arrays[f"blur_{case}"], atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blur_of_a_batch(golden, backend):
    arrays = golden("aug_ops.npz")
    views = Views(size=int(arrays["bblur_height"]))
    whole = np.tile([0, 0, views.size, views.size], (6, 1))
    for view in range(2):
        parameters = plain(whole[:, 2:], whole)
        blurred = arrays["bblur_selector_u"][view] < 0.5
        sigma = np.full(6, arrays["bblur_sigma"][view])
        parameters = replace(parameters, blur=blurred, sigma=sigma)
        result = views.apply(arrays["bblur_in"][view], parameters, backend)
        expected = arrays["bblur_out"][view].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(result.numpy(), expected, atol=2e-6)
        assert 0 < blurred.sum() < 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["s32", "s32_s1"])
def test_replay_of_the_official_training_preprocessing(golden, case, backend):
    arrays = golden("aug_replay_tf2.npz")
    (meta,) = (m for m in json.loads(str(arrays["meta_json"])) if m["name"] == case)
    draws, n = meta["draws"], len(meta["draws"])
    neutral = dict(perm=[0, 1, 2, 3], factors_b_c_s_h=NEUTRAL)
    parameters = ViewParameters(
        sizes=np.tile([meta["in_h"], meta["in_w"]], (n, 1)),
        crop=np.array([d["crop_yxhw"] for d in draws]),
        flip=np.array([d["flip"] for d in draws]),
        jitter=np.array([d["jitter"] for d in draws]),
        order=np.array([(neutral | d)["perm"] for d in draws], np.uint8),
        factors=np.array([(neutral | d)["factors_b_c_s_h"] for d in draws], np.float32),
        grey=np.array([d["gray"] for d in draws]),
        blur=np.zeros(n, bool),
        sigma=np.ones(n, np.float32),
    )
    images = np.repeat(arrays[f"{case}_in"][None], n, 0)
    result = Views(size=meta["size"]).apply(images, parameters, backend)
    np.testing.assert_allclose(result.numpy(), arrays[f"{case}_out"].transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("case", ["256x320_to224", "150x200_to224", "97x131_to64", "32x32_to32_nocrop"])
def test_evaluation(golden, case):
    arrays = golden("aug_eval_tf2.npz")
    image, expected = arrays[f"{case}_in"], arrays[f"{case}_out"].transpose(2, 0, 1)
    preprocess = Preprocess(expected.shape[1])
    box = preprocess.box(*image.shape[:2])
    assert "nocrop" in case or box == tuple(arrays[f"{case}_crop_yxhw"])
    np.testing.assert_allclose(preprocess(image).numpy(), expected, atol=1e-5)
    twice = preprocess.batch(np.stack([image, 255 - image]))
    np.testing.assert_allclose(twice[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 52), (20, 26), (80, 104), (33, 17), (7, 9), (224, 224), (41, 53)])
def test_resize_alone(golden, shape):
    arrays = golden("aug_eval_tf2.npz")
    image, expected = arrays["resize_in"], arrays[f"resize_{shape[0]}x{shape[1]}"]

    def matrix(length, size):
        return tensor.resampling(torch.tensor([0]), torch.tensor([length]), None, length, size, False)[0]

    rows, columns = (matrix(length, size).numpy() for length, size in zip((40, 52), shape, strict=True))
    result = np.einsum("ih,hwc,jw->ijc", rows, image, columns)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [5, 11, 16, 23, 32])
def test_resize_weights(golden, size):
    matrix = tensor.resampling(torch.tensor([0]), torch.tensor([16]), None, 16, size, False)[0]
    np.testing.assert_allclose(matrix.numpy(), golden("aug_eval_tf2.npz")[f"weights_16_to_{size}"], atol=2e-6)
