"""The finishing operations: closed forms, published definitions, distributions, and independence of what is off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.ndimage import sobel as scipy_sobel
from scipy.stats import chi2, kstest
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode, v2

from simclr import randomness
from simclr.views import ViewParameters, Views, finishing, view_policies
from simclr.views.autoaugment import NAMES, apply_step, policy_table
from simclr.views.draw import Request, plain
from simclr.views.operations import FINISHING

BACKENDS = ("numba", "torch")
NAMES_OF_ALL = [operation.name for operation in FINISHING]
N = 20_000
OFF = {"size": 32, "crop_area": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def noise(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def photographs(n=12, size=32):
    """Smooth images, which no rounding turns into others."""
    coarse = torch.from_numpy(np.random.default_rng(1).random((n, 3, 4, 4)))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return (fine.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def finished(images, backend="numba", **decided):
    """Whole images with these decisions of finishing operations."""
    sizes = np.tile(images.shape[1:3], (len(images), 1))
    parameters = replace(plain(sizes, np.concatenate([0 * sizes, sizes], 1)), finishing=decided)
    return Views(**OFF | {"size": images.shape[1]}).apply(images, parameters, backend)


def rows(n, *values):
    return np.tile(np.array(values, np.float64), (n, 1))


def as_float(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def as_bytes(views):
    return (views * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotation_permutes_pixels(backend):
    images = noise(4, 31)
    result = as_bytes(finished(images, backend, rotate=np.arange(4.0)[:, None]))
    for turns in range(4):
        np.testing.assert_array_equal(result[turns], np.rot90(images[turns], turns))


def test_rotation_commutes_with_all_before_it_but_the_crop():
    images, views = noise(16), Views(size=32, jitter=1.0, blur=1.0, grey=0.5, rotate=1.0)
    parameters = views.draw(np.arange(16), 0, 0, 0)
    whole = replace(parameters, crop=np.tile([0, 0, 32, 32], (16, 1)), flip=np.zeros(16, bool))
    turns = whole.finishing["rotate"][:, 0].astype(int)
    turned = np.stack([np.rot90(image, k) for image, k in zip(images, turns, strict=True)])
    before = views.apply(turned, replace(whole, finishing={}))
    assert (views.apply(images, whole) - before).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_solarise_and_posterise_are_their_formulas(backend):
    images = noise(8)
    thresholds = np.array([0.0, 0.25, 0.501, 0.75, 0.9, 0.33, np.inf, np.inf])
    x, t = images / 255, thresholds[:, None, None, None]
    result = finished(images, backend, solarise=thresholds[:, None]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(result, np.where(x >= t, 1 - x, x), atol=1e-6)
    bits = np.arange(1.0, 9.0)[:, None]
    result = as_bytes(finished(images, backend, posterise=bits))
    for k, image in enumerate(images, start=1):
        np.testing.assert_array_equal(result[k - 1], image // 2 ** (8 - k) * 2 ** (8 - k))
        np.testing.assert_array_equal(result[k - 1], ImageOps.posterize(Image.fromarray(image), k))
    untouched = finished(images, backend, posterise=0 * bits)
    torch.testing.assert_close(untouched, as_float(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equalise_is_pillows(backend):
    images = np.concatenate([photographs(), noise(2), np.full((1, 32, 32, 3), 9, np.uint8)])
    result = as_bytes(finished(images, backend, equalise=rows(15, 1)))
    for k, image in enumerate(images):
        np.testing.assert_array_equal(result[k], ImageOps.equalize(Image.fromarray(image)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sobel_is_scipys_in_float64(backend):
    images = photographs(3)
    result = finished(images, backend, sobel=rows(3, 1)).permute(0, 2, 3, 1).numpy()
    for k, channel in np.ndindex(3, 3):
        x = images[k, ..., channel].astype(np.float64) / 255
        expected = np.hypot(*(scipy_sobel(x, axis, mode="nearest") / 4 for axis in (0, 1))).clip(0, 1)
        np.testing.assert_allclose(result[k, ..., channel], expected, atol=2e-6)


def test_noise_is_normal_of_the_drawn_deviation_and_of_its_key_alone():
    images = np.full((6, 64, 64, 3), 128, np.uint8)
    deviations, keys = np.array([0.0, 0.02, 0.05, 0.1, 0.1, 0.1]), np.array([1.0, 2, 3, 4, 2**53 - 1, 4])
    added = finished(images, noise=np.stack([deviations, keys], 1)) - 128 / 255
    assert added[0].abs().max() < 1e-6
    torch.testing.assert_close(added[3], added[5], atol=0, rtol=0)
    for k in range(1, 5):
        sample = added[k].flatten().numpy().astype(np.float64)
        assert abs(sample.mean()) < 4 * deviations[k] / np.sqrt(sample.size)
        assert sample.std() == pytest.approx(deviations[k], rel=0.03)
        assert kstest(sample / deviations[k], "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(added[1:5].flatten(1).numpy()) - np.eye(4)).max() < 4 / np.sqrt(3 * 64**2)
    assert finished(noise(2), noise=rows(2, 1.0, 5)).min() >= 0


def test_numbers_of_pixels_are_those_of_the_hash_of_all_draws():
    keys = np.array([3.0, 2**53 - 1])
    u = finishing.pixel_uniforms(keys, torch.empty(2, 3, 5, 5))
    golden = np.uint64(0x9E3779B97F4A7C15)
    words = randomness._mix(keys.astype(np.uint64)[:, None] + golden * np.arange(1, 76, dtype=np.uint64))
    expected = ((words >> np.uint64(41)).astype(np.float64) + 0.5) * 2.0**-23
    np.testing.assert_array_equal(u.flatten(1).numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cutout_and_erase_fill_their_boxes(backend):
    images = noise(3)
    boxes = np.array([[-4.0, 20, 16, 16], [10, 5, 7, 9], [0, 0, 0, 0]])
    filled = finished(images, backend, cutout=boxes)
    expected = as_float(images)
    expected[0, :, :12, 20:] = expected[1, :, 10:17, 5:14] = 0.5
    torch.testing.assert_close(filled, expected, atol=1e-6, rtol=0)
    erased = finished(images, backend, erase=np.concatenate([boxes, [[7.0], [8], [9]]], 1))
    changed = (erased - as_float(images)).abs() > 1e-6
    assert changed[0, :, :12, 20:].float().mean() > 0.99 and changed[1, :, 10:17, 5:14].float().mean() > 0.99
    changed[0, :, :12, 20:] = changed[1, :, 10:17, 5:14] = False
    assert not changed.any()
    assert erased.min() >= 0 and erased.max() <= 1


def drawn(**settings):
    return Views(**OFF | settings).draw(np.arange(N), 0, 0, 0).finishing


def test_boxes_have_their_distributions():
    y, x, h, w = drawn(cutout=1.0, cutout_side=(0.25, 0.5))["cutout"].T
    np.testing.assert_array_equal(h, w)
    assert (h.min(), h.max()) == (8, 16)
    for centre in (y + h // 2, x + w // 2):
        counts = np.bincount(centre.astype(int), minlength=32)
        assert len(counts) == 32 and chi2.sf(((counts - N / 32) ** 2 / (N / 32)).sum(), 31) > 1e-3
    # side 16: each axis keeps 16 pixels, less what is beyond the border, 136 / 32 on average
    boxes = drawn(cutout=1.0)["cutout"]
    area = finishing.inside(boxes, torch.empty(1, 1, 32, 32)).float().sum((1, 2, 3)).numpy()
    kept = np.mean([min(c + 8, 32) - max(c - 8, 0) for c in range(32)])
    assert abs(area.mean() - kept**2) < 4 * area.std() / np.sqrt(N)

    large = drawn(size=1000, erase=1.0, erase_area=(0.02, 0.2), erase_ratio=(0.5, 2.0))["erase"]
    y, x, h, w, _ = large.T
    assert min(y.min(), x.min()) >= 0 and max((y + h).max(), (x + w).max()) <= 1000
    assert kstest(h * w / 1e6, "uniform", (0.02, 0.18)).pvalue > 1e-3
    assert kstest(np.log(w / h), "uniform", (np.log(0.5), np.log(4))).pvalue > 1e-3
    assert kstest(y / (1001 - h), "uniform").pvalue > 1e-3
    assert kstest(x / (1001 - w), "uniform").pvalue > 1e-3


def test_ranges_have_their_distributions():
    assert (
        kstest(drawn(solarise=1.0, solarise_threshold=(0.2, 0.6))["solarise"][:, 0], "uniform", (0.2, 0.4)).pvalue
        > 1e-3
    )
    assert kstest(drawn(noise=1.0, noise_deviation=(0.1, 0.3))["noise"][:, 0], "uniform", (0.1, 0.2)).pvalue > 1e-3
    bits, counts = np.unique(drawn(posterise=1.0, posterise_bits=(3, 6))["posterise"], return_counts=True)
    np.testing.assert_array_equal(bits, [3, 4, 5, 6])
    assert (np.abs(counts - N / 4) < 4 * np.sqrt(N * 3 / 16)).all()
    turns, counts = np.unique(drawn(rotate=0.75)["rotate"], return_counts=True)
    np.testing.assert_array_equal(turns, range(4))
    assert (np.abs(counts - N / 4) < 4 * np.sqrt(N * 3 / 16)).all()


OFF_VALUE = {"rotate": (0, 0), "solarise": (0, np.inf), "posterise": (0, 0), "equalise": (0, 0), "sobel": (0, 0),
             "noise": (0, 0), "cutout": (2, 0), "erase": (2, 0), "autoaugment": (0, -1)}  # fmt: skip


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_probabilities(p):
    decided = drawn(**dict.fromkeys(NAMES_OF_ALL, p), noise_deviation=(0.1, 0.2))
    on = []
    for name, (column, value) in OFF_VALUE.items():
        is_on = decided[name][:, column] != value
        if name == "autoaugment":  # with images whose sub-policy does nothing
            table = policy_table("imagenet")[:, :, 1]
            is_on |= decided[name][:, 2] != value
            expected = p * (1 - (1 - table).prod(1)).mean()
        else:
            expected = p
        assert abs(is_on.mean() - expected) <= 4 * np.sqrt(expected * (1 - expected) / N), name
        on.append(is_on)
    if p == 0.5:
        assert np.abs(np.corrcoef(on) - np.eye(len(on))).max() < 4 / np.sqrt(N)


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_autoaugment_draws_its_policies(name):
    decided = drawn(autoaugment=1.0, autoaugment_policy=name)["autoaugment"]
    policies = AutoAugment(AutoAugmentPolicy(name)).policies
    steps = {(step, level) for pair in policies for step, probability, level in pair if probability}
    magnitudes = {s: {abs(m) for m in decided[:, [1, 3]][decided[:, [0, 2]] == NAMES.index(s)]} for s, _ in steps}
    assert sum(map(len, magnitudes.values())) == len({(s, level or 0) for s, level in steps})
    for j in range(2):
        for k, step in enumerate(NAMES):
            expected = sum(p[j][1] for p in policies if p[j][0] == step) / 25
            frequency = (decided[:, 2 * j] == k).mean()
            assert abs(frequency - expected) <= 4 * np.sqrt(expected * (1 - expected) / N), step
    signed = decided[np.isin(decided[:, 0], [NAMES.index("Rotate"), NAMES.index("Color")]) & (decided[:, 1] != 0), 1]
    if len(signed):
        assert abs((signed > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(signed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_every_sub_policy_is_torchvisions(name, backend):
    images, reference = photographs(25), v2.AutoAugment(fill=128)
    apply, fill = reference._apply_image_or_video_transform, reference._fill
    for sign in (1, -1):
        table = policy_table(name)
        step, magnitude = table[..., 0], np.where(table[..., 3] > 0, sign, 1) * table[..., 2]
        result = finished(images, backend, autoaugment=np.stack([step, magnitude], 2).reshape(25, 4))
        space = AutoAugment()._augmentation_space(10, (32, 32))
        for k, pair in enumerate(AutoAugment(AutoAugmentPolicy(name)).policies):
            expected = torch.from_numpy(images[k]).permute(2, 0, 1)
            for own, (name_of_step, _, level) in zip(magnitude[k].tolist(), pair, strict=True):
                own = own * 32 if name_of_step.startswith("Translate") else own
                own = round(own) if name_of_step == "Posterize" else own
                magnitudes, signed = space[name_of_step]
                theirs = 0.0 if level is None else float(magnitudes[level]) * (sign if signed else 1)
                assert own == pytest.approx(theirs, rel=1e-5, abs=1e-5) or level is None
                own = own / 255 if name_of_step == "Solarize" else own  # of the maximum, in this version of the steps
                expected = apply(expected, name_of_step, own, InterpolationMode.NEAREST, fill)
            different = as_bytes(result)[k] != expected.permute(1, 2, 0).numpy()
            assert different.mean() < 0.002, pair  # sums over a batch round in another order


def test_steps_take_their_magnitudes():
    x = torch.from_numpy(photographs(1)).permute(0, 3, 1, 2)
    inverted = apply_step(x, NAMES.index("Invert"), 0.0)
    assert torch.equal(apply_step(x, NAMES.index("Solarize"), 0.0), inverted)
    assert torch.equal(apply_step(x, NAMES.index("TranslateX"), 0.25)[..., 8:], x[..., :-8])
    assert (apply_step(x, NAMES.index("TranslateY"), -0.25)[..., -8:, :] == 128).all()


@pytest.mark.parametrize("operation", NAMES_OF_ALL)
def test_backends_agree(operation):
    images = photographs(24, 40)
    views = Views(**{"size": 32, operation: 0.7})
    parameters = views.draw(np.arange(24), 0, 0, 0, (40, 40))
    compiled, batched = (views.apply(images, parameters, backend) for backend in BACKENDS)
    different = (compiled - batched).abs() > 2e-5
    # what rounds to bytes or has thresholds turns an error of 1e-6 into a level now and then
    rounds = operation in ("autoaugment", "posterise", "equalise")
    assert different.float().mean() <= (0.02 if rounds else 0)
    crops = np.stack([views.crop(images[i], parameters.crop[i], parameters.flip[i]) for i in range(24)])
    plain_crops = replace(parameters, jitter=np.zeros(24, bool), grey=np.zeros(24, bool), blur=np.zeros(24, bool))
    compiled, batched = (views.colour(crops, plain_crops, backend) for backend in BACKENDS)
    assert (compiled - batched).abs().max() < 1e-5  # from bytes they agree on every level
    assert compiled.min() >= 0 and compiled.max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_gives_what_each_image_gives_alone(backend):
    images = photographs(6)
    views = Views(**OFF | dict.fromkeys(NAMES_OF_ALL, 0.5))
    parameters = views.draw(np.arange(6), 0, 0, 0)
    together = views.apply(images, parameters, backend)
    for i in range(6):
        alone = views.apply(images[i : i + 1], parameters[i], backend)
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)
    out = torch.empty(6, 32, 32, 3)
    assert views.apply(images, parameters, backend, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out.permute(0, 3, 1, 2), together)


@pytest.mark.parametrize("operation", NAMES_OF_ALL)
def test_what_is_on_moves_no_other_draw(operation):
    images, without = noise(16), Views(size=32)
    one, all_on = replace(without, **{operation: 0.5}), replace(without, **dict.fromkeys(NAMES_OF_ALL, 0.5))
    a, b, c = (views.draw(np.arange(16), 1, 1, 3) for views in (without, one, all_on))
    assert a.finishing == {} and set(b.finishing) == {operation}
    for name in vars(a):
        if name != "finishing":
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(b.finishing[operation], c.finishing[operation])
    unfinished = replace(b, finishing={})
    for backend in BACKENDS:
        assert torch.equal(one.apply(images, unfinished, backend), without.apply(images, a, backend))


def test_one_branch_only():
    first, second = view_policies(Views(**OFF), [{}, {"solarise": 1.0, "cutout": 1.0, "cutout_side": [0.2, 0.3]}])
    images = noise(4)
    assert first == Views(**OFF) and second.cutout_side == (0.2, 0.3)
    torch.testing.assert_close(
        first.apply(images, first.draw(np.arange(4), 0, 0, 0)), as_float(images), atol=1e-6, rtol=0
    )
    changed = second.apply(images, second.draw(np.arange(4), 0, 1, 0)) - as_float(images)
    assert (changed.abs() > 1e-3).float().mean() > 0.4


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("operation", [op for op in FINISHING if op.channels is None])
def test_operations_without_a_number_of_channels_take_any(operation, channels):
    request = Request(0, 0, np.arange(4), 0, np.full((4, 2), 16))
    policy = Views(**{"size": 16, operation.name: 1.0})
    decided = operation.draw(policy, request, np.random.default_rng(0).random((4, len(operation.slots))))
    x = torch.rand(4, channels, 16, 16)
    before = x.clone()
    operation.apply(x, decided)
    assert x.shape == before.shape and not torch.equal(x, before)
    if operation.name != "noise" and operation.name != "erase":  # each channel by itself
        operation.apply(before[:, -1:], decided)
        assert torch.equal(before[:, -1], x[:, -1])


def test_autocast_reaches_nothing():
    views, images = Views(**OFF | dict.fromkeys(NAMES_OF_ALL, 1.0)), photographs(4)
    parameters = views.draw(np.arange(4), 0, 0, 0)
    expected = views.apply(images, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views.apply(images, parameters), expected)


@pytest.mark.parametrize("operation", [op for op in FINISHING if op.name != "autoaugment"])
def test_no_operation_waits_for_a_value(operation):
    """Tensors without values refuse every operation that would synchronise with the host."""
    views = Views(**{"size": 16, operation.name: 0.9})
    p: ViewParameters = views.draw(np.arange(4), 0, 0, 0)
    operation.apply(torch.empty(4, 3, 16, 16, device="meta"), p.finishing[operation.name])
