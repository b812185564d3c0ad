"""Views as a whole: both backends, both paths, every size."""

from dataclasses import replace

import numba
import numpy as np
import pytest
import torch

from simclr.errors import SettingError
from simclr.views import Views, operations, rendering
from simclr.views import torch_backend as tensor
from simclr.views.cpu_compile import exact, fast
from simclr.views.draw import Style, plain

BACKENDS = ("numba", "torch")
LEVEL = 1 / 255
OPERATIONS = ("crop", "flip", "brightness", "contrast", "saturation", "hue", "grey", "blur")
POLICIES = {
    "v2": Views(size=32),
    "v1": Views(size=32, brightness_form="add"),
    "strong": Views(size=32, strength=2.0),
    "torchvision": Views(size=32, semantics="torchvision"),
    "wide blur": Views(size=48, blur_kernel=0.5, blur_sigma=(0.1, 6.0), blur=1.0),
    "wide mirrored blur": Views(size=47, blur_kernel=1.0, blur_sigma=(0.1, 30.0), blur=1.0, semantics="torchvision"),
}


def noise(n, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def only(operation, views, indices, sizes):
    """Parameters drawn by `views` where this operation alone is at work."""
    drawn = views.draw(indices, 0, 0, 0, sizes)
    n, yes = len(indices), np.ones(len(indices), bool)
    whole = np.concatenate([0 * drawn.sizes, drawn.sizes], 1)
    parameters = plain(drawn.sizes, whole)
    if views.brightness_form == "add":
        parameters.factors[:, 0] = 0
    if operation == "crop":
        return replace(parameters, crop=drawn.crop)
    if operation == "flip":
        return replace(parameters, flip=drawn.flip)
    if operation in ("grey", "blur"):
        return replace(parameters, **{operation: yes}, sigma=drawn.sigma)
    column = ("brightness", "contrast", "saturation", "hue").index(operation)
    parameters.factors[:, column] = drawn.factors[:, column]
    order = np.array([column] + [k for k in range(4) if k != column], np.uint8)
    return replace(parameters, jitter=yes, order=np.tile(order, (n, 1)))


@pytest.mark.parametrize("policy", POLICIES)
def test_backends_agree_on_everything_together(policy):
    views, indices = POLICIES[policy], np.arange(64)
    for height, width in ((32, 32), (75, 50)):
        images = noise(64, height, width)
        parameters = views.draw(indices, 0, 0, 0, (height, width))
        compiled, batched = (views.apply(images, parameters, backend) for backend in BACKENDS)
        assert compiled.shape == (64, 3, views.size, views.size)
        assert (compiled - batched).abs().max() < 2e-5


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("policy", ["v2", "v1", "strong", "torchvision"])
def test_backends_agree_on_each_operation_and_stay_in_range(operation, policy):
    views, images = POLICIES[policy], noise(48, 40, 33)
    parameters = only(operation, views, np.arange(48), (40, 33))
    compiled, batched = (views.apply(images, parameters, backend) for backend in BACKENDS)
    assert (compiled - batched).abs().max() < 1e-5
    assert 0 <= compiled.min() <= compiled.max() <= 1
    assert 0 <= batched.min() <= batched.max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (1, 9), (400, 5), (5, 400), (33, 31)])
@pytest.mark.parametrize("semantics", ["official", "torchvision"])
def test_odd_sizes(size, semantics, backend):
    images, indices = noise(6, *size), np.arange(6)
    for views in (Views(size=s, semantics=semantics, blur_kernel=0.3) for s in (1, 7, 32, 33)):
        parameters = views.draw(indices, 0, 0, 0, size)
        result = views.apply(images, parameters, backend)
        assert result.shape == (6, 3, views.size, views.size)
        assert 0 <= result.min() <= result.max() <= 1
        grey = replace(plain(parameters.sizes, parameters.crop), blur=parameters.blur & (semantics != "official"))
        constant = views.apply(np.full_like(images, 200), grey, backend)
        torch.testing.assert_close(constant, torch.full_like(constant, 200 / 255), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_image_of_a_batch_has_its_own_draw(operation, backend):
    images = np.repeat(noise(1, 32, 32), 16, 0)
    result = Views(size=32).apply(images, only(operation, Views(size=32), np.arange(16), (32, 32)), backend)
    expected = {"flip": 2, "grey": 1}.get(operation, 15)  # of the 16 copies
    assert len(np.unique(result.numpy().round(5), axis=0)) >= expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_views_differ_and_come_from_the_same_image(backend):
    n = 256
    textured, views = noise(n, 32, 32), Views(size=32)
    first, second = (views.apply(textured, views.draw(np.arange(n), 0, v, 0), backend) for v in range(2))
    assert ((first - second).abs().amax((1, 2, 3)) > LEVEL).float().mean() >= 0.99
    # the index painted as a colour survives crop, flip and blur's mirrored border
    painted = np.zeros((n, 32, 32, 3), np.uint8)
    painted[...] = np.arange(n)[:, None, None, None]
    still = Views(size=32, jitter=0.0, grey=0.0, semantics="torchvision")
    for view in range(2):
        result = still.apply(painted, still.draw(np.arange(n), 0, view, 0), backend)
        assert (result * 255 - torch.arange(n)[:, None, None, None]).abs().max() < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["v2", "v1", "torchvision"])
def test_crops_made_by_workers_agree_with_whole_views(policy, backend):
    # bright and dark ends are spared, where the bicubic overshoot is lost in bytes
    views, indices, images = POLICIES[policy], np.arange(64), 64 + noise(64, 60, 50) // 2
    drawn = views.draw(indices, 0, 0, 0, (60, 50))
    for jitter in (False, True):
        parameters = replace(drawn, jitter=drawn.jitter & jitter)
        whole = views.apply(images, parameters, backend)
        crops = np.stack([views.crop(images[i], parameters.crop[i], parameters.flip[i]) for i in range(64)])
        assert crops.dtype == np.uint8
        error = (views.colour(crops, parameters, backend) - whole).abs() / LEVEL
        if jitter:  # half a level, times the gain of the jitter
            assert error.mean() < 0.5
            assert error.max() < 8
        else:  # grey and blur are averages: rounding is all
            assert error.max() < 0.5001


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_strength_and_identity(backend):
    images, indices = noise(8, 32, 32), np.arange(8)
    still = Views(
        size=32, strength=0.0, jitter=1.0, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, grey=0.0, blur=0.0
    )
    result = still.apply(images, still.draw(indices, 0, 0, 0), backend)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_hue_of_a_whole_turn_and_of_primary_colours():
    pure = np.zeros((3, 4, 4, 3), np.uint8)
    pure[0, ..., 0] = pure[1, ..., 1] = pure[2, ..., 2] = 255
    views = Views(size=4)
    for turns, shift in ((1 / 3, 1), (-1 / 3, -1), (0.0, 0), (1.0, 0)):
        parameters = only("hue", views, np.arange(3), (4, 4))
        parameters.factors[:, 3] = turns
        expected = torch.from_numpy(np.roll(pure, shift, -1)).permute(0, 3, 1, 2) / 255
        for backend in BACKENDS:
            torch.testing.assert_close(views.apply(pure, parameters, backend), expected, atol=1e-5, rtol=0)


def test_layouts_and_memory():
    views, images = Views(size=32), noise(5, 32, 32)
    parameters = views.draw(np.arange(5), 0, 0, 0)
    result = views.apply(images, parameters)
    assert result.is_contiguous(memory_format=torch.channels_last)
    images.flags.writeable = False
    backwards = np.ascontiguousarray(images[::-1])[::-1]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    for same in (images, torch.tensor(images), channels_first, torch.tensor(channels_first), backwards):
        torch.testing.assert_close(views.apply(same, parameters), result, atol=0, rtol=0)
    part = views.apply(images[::2], parameters[::2])
    torch.testing.assert_close(part, result[::2], atol=0, rtol=0)
    assert views.apply(images[:0], parameters[:0]).shape == (0, 3, 32, 32)


def test_threads_do_not_change_the_result():
    views, images = Views(size=32), noise(50, 32, 32)
    parameters, threads = views.draw(np.arange(50), 0, 0, 0), torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(views.apply(images, parameters))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_autocast_does_not_reach_the_pixels():
    views, images = Views(size=32), noise(4, 40, 40)
    parameters = views.draw(np.arange(4), 0, 0, 0, (40, 40))
    expected = views.apply(images, parameters, "torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views.apply(images, parameters, "torch"), expected)


def test_a_batch_taken_in_parts_gives_the_same_views(monkeypatch):
    views, images = Views(size=32), noise(7, 40, 40)
    parameters = views.draw(np.arange(7), 0, 0, 0, (40, 40))
    expected = views.apply(images, parameters, "torch")
    monkeypatch.setattr(rendering, "MAX_VALUES", 3 * 3 * 32**2)
    out = torch.full((7, 32, 32, 3), torch.nan)
    assert (views.apply(images, parameters, "torch", out=out) - expected).abs().max() < 1e-6
    assert torch.equal(out.permute(0, 3, 1, 2), views.apply(images, parameters, "torch"))


@pytest.mark.parametrize("torchvision", [False, True])
def test_the_tensor_operations_never_wait_for_a_value(torchvision):
    """Tensors without values refuse every operation that would synchronise with the host."""
    p = tensor.Decisions.of(Views(size=32).draw(np.arange(4), 0, 0, 0, (40, 40)), "meta")
    images = torch.empty(4, 40, 40, 3, dtype=torch.uint8, device="meta")
    x = tensor.crop_resize(images, p.crop, p.flip, 32, antialias=torchvision)
    style = Style(size=32, torchvision=torchvision, additive=False, radius=1)
    assert operations.apply_colour(x, p, style).shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0), ("flip", 1.1), ("jitter", -0.1), ("grey", 2.0), ("blur", float("nan")),
        ("crop_area", (0.0, 1.0)), ("crop_area", (0.5, 0.2)), ("crop_area", (0.01, 0.05)),
        ("crop_ratio", (0.0, 1.0)), ("crop_ratio", (2.0, 1.0)), ("strength", -1.0), ("hue", 0.6),
        ("blur_sigma", (0.0, 1.0)), ("blur_sigma", (2.0, 1.0)), ("blur_kernel", 1.5), ("contrast", float("inf")),
        ("rotate", 1.5), ("solarise_threshold", (0.6, 0.5)), ("posterise_bits", (0, 4)),
        ("noise_deviation", (-0.1, 0.1)), ("cutout_side", (0.0, 0.5)), ("erase_area", (0.1, 1.2)), ("erase", -1.0),
        ("erase_ratio", (2.0, 1.0)), ("autoaugment", 2.0),

    ],
)  # fmt: skip
def test_wrong_settings_name_their_field(field, value):
    with pytest.raises(SettingError) as error:
        Views(**({"size": 32} | {field: value}))
    assert error.value.field == f"views.{field}"


def test_wrong_images_are_refused():
    views = Views(size=32)
    parameters = views.draw(np.arange(4), 0, 0, 0)
    for images in (
        noise(4, 40, 32),
        noise(3, 32, 32),
        np.zeros((4, 32, 32), np.uint8),
        np.zeros((4, 32, 32, 3), np.uint16),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            views.apply(images, parameters)
    with pytest.raises(ValueError):  # noqa: PT011
        views.colour(noise(4, 31, 32), parameters)
    for box in ([0, 0, 9, 8], [1, 0, 8, 8], [0, -1, 8, 8], [3, 3, 0, 2]):
        with pytest.raises(ValueError):  # noqa: PT011
            views.crop(noise(1, 8, 8)[0], np.array(box), False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_different_sizes_give_what_each_gives_alone(backend):
    views = Views(size=24)
    images = [noise(1, height, width)[0] for height, width in ((24, 24), (40, 31), (19, 57))]
    parameters = views.draw(np.arange(3), 0, 0, 0, np.array([image.shape[:2] for image in images]))
    together = views.apply(images, parameters, backend)
    for i, image in enumerate(images):
        torch.testing.assert_close(together[i], views.apply(image[None], parameters[i], backend)[0], rtol=0, atol=0)
    with pytest.raises(ValueError):  # noqa: PT011
        views.apply(images[::-1], parameters, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_views_can_be_written_to_given_memory(backend, contiguous):
    views, images = Views(size=24), noise(5, 30, 40)
    parameters = views.draw(np.arange(5), 0, 0, 0, (30, 40))
    memory = torch.full((5, 24, 24, 3) if contiguous else (5, 24, 24, 6), -1.0)
    out = memory if contiguous else memory[..., ::2]
    written = views.apply(images, parameters, backend, out=out)
    assert written.data_ptr() == memory.data_ptr()
    torch.testing.assert_close(written, views.apply(images, parameters, backend), rtol=0, atol=0)
    crops = noise(5, 24, 24)
    written = views.colour(crops, parameters, backend, out=out)
    assert written.data_ptr() == memory.data_ptr()
    torch.testing.assert_close(written, views.colour(crops, parameters, backend), rtol=0, atol=0)


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch):
    njit = numba.njit

    def without_a_place(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_a_place)
    for compiled in (exact, fast):
        assert compiled(lambda x: x + 1)(1) == 2
