"""A batch is a function of its step and does not depend on workers, processes or where the run began."""

import contextlib
import csv
import dataclasses
import os
import pickle
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from simclr.data import decoding, open_source
from simclr.data.in_memory import load_images
from simclr.errors import SettingError, TooManyBadImages, UnreadableImage
from simclr.runs.environment import PARALLEL
from simclr.runs.files import write_unreadable
from simclr.training import batches, crops
from simclr.training.batches import Loading, Resident, Streamed, open_batches
from simclr.training.crops import CropDataset
from simclr.training.sampler import BatchSampler
from simclr.views import Views

VIEWS = Views(size=8)
PAIR = (VIEWS, VIEWS)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork")


def batches_of(kind, source, batch, seed, rank=0, world=1, views=VIEWS, device="cpu", **loading):
    """Batches of two views of each image by one of the classes, or by `open_batches`."""
    sampler = BatchSampler(len(source), batch, seed, rank, world)
    return kind(source, (views, views), sampler, Loading(**loading), device)


def same(one, other) -> bool:
    equal = (torch.equal(mine, theirs) for mine, theirs in zip(one.views, other.views, strict=True))
    return one.step == other.step and np.array_equal(one.indices, other.indices) and all(equal)


def test_batch_sizes_that_do_not_fit_are_refused(even):
    for batch, world in ((31, 1), (0, 1), (10, 4)):
        with pytest.raises(SettingError) as error:
            batches_of(open_batches, even, batch=batch, seed=0, world=world)
        assert error.value.field == "batch"


# streamed


@pytest.fixture(scope="module")
def streamed(folder):
    return list(batches_of(Streamed, folder, batch=20, seed=7, workers=0, max_bad=0.2)(range(4)))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (4, "fork"), (2, "spawn")])
def test_batches_do_not_depend_on_the_workers(folder, streamed, workers, method):
    batches = batches_of(Streamed, folder, batch=20, seed=7, workers=workers, max_bad=0.2, start_method=method)
    assert all(same(one, other) for one, other in zip(batches(range(4)), streamed, strict=True))
    assert batches.bad.keys() == {"05.png", "11.png", "23.png"}


def photographs(root, side):
    for k in range(8):
        rng = np.random.default_rng(k)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(root / f"{k}.jpg", quality=95)
    return open_source(root, "all")


def test_fast_decoding_of_large_jpegs_gives_nearly_the_same_views(tmp_path, monkeypatch):
    views, source = Views(size=32), photographs(tmp_path, 900)
    read = []
    original = decoding.LazyImage.read
    monkeypatch.setattr(decoding.LazyImage, "read", lambda *a: read.append((a[0].size, original(*a))) or read[-1][1])
    exact, fast = (
        next(iter(batches_of(Streamed, source, batch=8, seed=3, views=views, workers=0, decode=d)(range(1))))
        for d in ("exact", "fast")
    )
    parts = [round(max(size) / max(found.whole)) for size, found in read]
    assert parts[:8] == [1] * 8 and max(parts[8:]) == 8 and min(parts[8:]) >= 2
    # the pictures are smooth, so less resolution changes them little; edges move by half a pixel at most
    difference = (exact.views[0] - fast.views[0]).abs()
    assert difference.mean() < 0.01 and difference.quantile(0.99) < 0.06


def test_fast_decoding_does_not_change_small_images(tmp_path):
    source = photographs(tmp_path, 60)
    views = Views(size=32)
    exact, fast = (
        next(iter(batches_of(Streamed, source, batch=8, seed=3, views=views, workers=0, decode=d)(range(1))))
        for d in ("exact", "fast")
    )
    assert same(exact, fast)


def test_a_run_resumed_in_the_middle_has_the_same_batches(folder, streamed):
    later = list(batches_of(Streamed, folder, batch=20, seed=7, workers=0, max_bad=0.2)(range(2, 4)))
    assert [batch.step for batch in later] == [2, 3]
    assert all(map(same, later, streamed[2:]))


def test_streamed_views_are_the_crops_and_colours_of_their_images(folder, streamed):
    batch = streamed[1]  # with 37 images and a batch of 20, each step is an epoch
    for k in (0, 13):
        image = folder.read(batch.indices[k])
        for v in (0, 1):
            one = VIEWS.draw(batch.indices[k : k + 1], 1, v, 7, image.shape[:2])
            expected = VIEWS.colour(torch.from_numpy(VIEWS.crop(image, one.crop[0], one.flip[0]))[None], one)
            assert torch.equal(batch.views[0][v, k], expected[0])


def test_all_draws_differ_between_images_epochs_and_views(streamed):
    views = torch.cat([batch.views[0].flatten(0, 1) for batch in streamed]).flatten(1).numpy()
    assert len(np.unique(views, axis=0)) / len(views) > 0.98


def test_crops_are_sent_as_bytes(folder):
    part = CropDataset(folder, PAIR, BatchSampler(37, 20, 7))[0, np.arange(3)]
    (crops,) = part.crops
    assert crops.dtype == torch.uint8
    assert crops.shape == (2, 3, 8, 8, 3)
    assert crops.nbytes == 2 * 3 * 8 * 8 * 3


def test_processes_share_the_streamed_batch(folder, streamed):
    for rank in (0, 1):
        share = list(
            batches_of(Streamed, folder, batch=20, seed=7, rank=rank, world=2, workers=0, max_bad=0.2)(range(2))
        )
        for one, whole in zip(share, streamed, strict=False):
            part = slice(10 * rank, 10 * rank + 10)
            assert np.array_equal(one.indices, whole.indices[part])
            assert torch.equal(one.views[0], whole.views[0][:, part])


def test_the_global_generator_does_not_change(folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches_of(Streamed, folder, batch=4, seed=7, workers=1, max_bad=0.2)(range(2)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_crops_and_their_data_set_can_be_pickled(folder):
    copy = pickle.loads(pickle.dumps(CropDataset(folder, PAIR, BatchSampler(37, 20, 7))))
    mine, theirs = CropDataset(folder, PAIR, BatchSampler(37, 20, 7))[3, np.arange(8)], copy[3, np.arange(8)]
    assert torch.equal(mine.crops[0], theirs.crops[0])
    assert pickle.loads(pickle.dumps(mine)).bad[0].reason == mine.bad[0].reason == "empty file"


def test_a_large_batch_is_streamed_within_the_usual_limit_of_open_files():
    source = open_source(Holes(set()), "all")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 300, limits[1]))
    try:
        batches = batches_of(Streamed, source, batch=2000, seed=0, workers=2)  # 250 parts, and as many in advance
        assert [len(batch.indices) for batch in batches(range(3))] == [2000] * 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# unreadable images


def test_unreadable_images_are_replaced_and_listed(folder, tmp_path):
    batches = batches_of(Streamed, folder, batch=37, seed=7, workers=0, max_bad=0.2)
    order = BatchSampler(37, 37, 7)
    names = [folder.path(i) for i in range(37)]
    bad = {names.index(name) for name in ("05.png", "11.png", "23.png")}
    for batch in batches(range(3)):
        for wanted, used in zip(order.indices(batch.step).tolist(), batch.indices.tolist(), strict=True):
            if wanted in bad:
                assert used == next(i for i in order.replacements(batch.step, wanted) if i not in bad)
            else:
                assert used == wanted
    assert batches.bad.keys() == {names[i] for i in bad}
    write_unreadable(tmp_path / "bad_files.csv", batches.bad)
    with open(tmp_path / "bad_files.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["05.png", "11.png", "23.png"]
    assert [row["reason"] for row in rows][:2] == ["empty file", "not an image in a format that Pillow reads"]


class Holes:
    """2,000 pictures, of which those in `bad` raise."""

    def __init__(self, bad: set[int]):
        self.bad = bad

    def __len__(self):
        return 2000

    def __getitem__(self, i):
        if i in self.bad:
            raise OSError("a hole")
        return np.full((9, 9, 3), i % 256, np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_past_the_allowed_fraction_of_unreadable_images(workers):
    source = open_source(Holes(set(range(1, 2000, 10))), "all")  # 10 %
    tolerant = batches_of(Streamed, source, batch=100, seed=0, workers=workers, max_bad=0.2)
    assert len(list(tolerant(range(20)))) == 20
    assert len(tolerant.bad) == 200
    strict = batches_of(Streamed, source, batch=100, seed=0, workers=workers, max_bad=0.05)
    with pytest.raises(TooManyBadImages):
        list(strict(range(20)))
    with pytest.raises(TooManyBadImages):
        batches_of(Resident, source, batch=100, seed=0)


def test_a_few_unreadable_images_never_end_a_run():
    source = open_source(Holes(set(range(1, 20))), "all").select(np.arange(38), "all")
    batches = batches_of(Streamed, source, batch=38, seed=0, workers=0, max_bad=0.0)
    assert len(list(batches(range(3)))) == 3
    assert len(batches.bad) == 19


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_with_nothing_to_read_ends_at_once(workers):
    source = open_source(Holes(set(range(1, 2000))), "all").select(np.arange(1, 9), "all")
    with pytest.raises(TooManyBadImages):
        list(batches_of(Streamed, source, batch=4, seed=0, workers=workers)(range(1)))


# resident


def test_resident_views_are_those_of_the_library(even, even_pixels):
    batches = batches_of(open_batches, even, batch=12, seed=5)
    assert isinstance(batches, Resident)
    for batch in batches(range(1, 4)):
        assert 4 not in batch.indices
        for v in (0, 1):
            parameters = VIEWS.draw(batch.indices, batch.step // 2, v, 5, (10, 12))
            assert torch.equal(batch.views[0][v], VIEWS.apply(even_pixels[batch.indices], parameters))
        assert batch.views[0].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert batches.bad == {"04.png": "empty file"}


@pytest.mark.slow
def test_resident_and_streamed_take_the_same_images(even):
    resident = batches_of(Resident, even, batch=10, seed=5)
    streamed = batches_of(Streamed, even, batch=10, seed=5, workers=0)
    for one, other in zip(resident(range(6)), streamed(range(6)), strict=True):
        assert np.array_equal(one.indices, other.indices)
    assert resident.bad == streamed.bad


def test_resident_batches_resume_anywhere_on_any_number_of_processes(even):
    whole = list(batches_of(Resident, even, batch=10, seed=5)(range(5)))
    assert all(map(same, batches_of(Resident, even, batch=10, seed=5)(range(2, 5)), whole[2:]))
    halves = [list(batches_of(Resident, even, batch=10, seed=5, rank=r, world=2)(range(5))) for r in (0, 1)]
    for one, other, both in zip(*halves, whole, strict=True):
        assert torch.equal(torch.cat([one.views[0], other.views[0]], 1), both.views[0])


def test_images_that_do_not_fit_are_decoded_once(folder, monkeypatch):
    reads = []
    monkeypatch.setattr("simclr.training.batches.load_images", lambda *a: reads.append(a))
    with pytest.raises(SettingError):
        batches_of(open_batches, folder, batch=4, seed=0, storage="resident")
    assert isinstance(batches_of(open_batches, folder, batch=4, seed=0), Streamed)
    assert len(reads) == 2


def test_views_computed_at_once_are_those_computed_one_by_one(even, monkeypatch):
    """As on a GPU."""
    policies = (VIEWS, VIEWS, VIEWS, Views(size=8, jitter=0.0), Views(size=4), Views(size=4))
    for kind in (Resident, Streamed):
        batches = kind(even, policies, BatchSampler(30, 10, 5), Loading(workers=0))
        alone = next(iter(batches(range(1))))
        with monkeypatch.context() as patch:
            for module in ("batches", "view_memory"):
                patch.setattr(f"simclr.training.{module}.at_once", lambda views, out: [(views, slice(0, len(out)))])
            together = next(iter(batches(range(1))))
        assert [torch.equal(a, b) for a, b in zip(alone.views, together.views, strict=True)] == [True, True]


def test_each_view_has_a_policy_of_its_own(even):
    policies = (VIEWS, Views(size=8, blur=0.0, jitter=0.0), VIEWS)
    for kind in (Resident, Streamed):
        batch = next(iter(kind(even, policies, BatchSampler(30, 10, 5), Loading(workers=0))(range(1))))
        alike = next(iter(kind(even, (VIEWS,) * 3, BatchSampler(30, 10, 5), Loading(workers=0))(range(1))))
        (views,), (same_views,) = batch.views, alike.views
        assert views.shape == (3, 10, 3, 8, 8)
        assert torch.equal(views[[0, 2]], same_views[[0, 2]])
        assert not torch.equal(views[1], same_views[1])


def test_storage_is_chosen_by_what_fits(folder, even):
    assert isinstance(batches_of(open_batches, folder, batch=4, seed=0), Streamed)
    assert isinstance(batches_of(open_batches, even, batch=4, seed=0), Resident)
    assert isinstance(batches_of(open_batches, even, batch=4, seed=0, max_bytes=30 * 360 - 1), Streamed)
    assert isinstance(batches_of(open_batches, even, batch=4, seed=0, max_bytes=30 * 360), Resident)
    assert isinstance(batches_of(open_batches, even, batch=4, seed=0, storage="streamed"), Streamed)
    with pytest.raises(SettingError) as error:
        batches_of(open_batches, folder, batch=4, seed=0, storage="resident")
    assert error.value.field == "machine.storage"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_files_that_are_decoded_once_give_the_batches_of_files_that_are_read_in_every_epoch(
    folder, streamed, workers, monkeypatch
):
    opened = []
    read = decoding.LazyImage.open
    monkeypatch.setattr(decoding.LazyImage, "open", lambda *a: opened.append(1) or read(*a))
    batches = batches_of(open_batches, folder, batch=20, seed=7, workers=workers, max_bad=0.2, start_method="fork")
    once = len(opened)
    assert once >= len(folder)
    found = list(batches(range(4)))
    assert len(opened) == once  # of this process; none if others read
    assert all(same(one, other) for one, other in zip(found, streamed, strict=True))
    assert batches.bad.keys() == {"05.png", "11.png", "23.png"}


def test_photographs_are_decoded_once_if_they_fit_and_if_every_epoch_would_read_the_same(tmp_path, monkeypatch):
    """Regions of JPEG files, some of them turned, against crops of whole images."""
    rng = np.random.default_rng(0)
    for i in range(12):
        height, width = rng.integers(40, 90, 2)
        pixels = torch.nn.functional.interpolate(torch.from_numpy(rng.random((1, 3, 6, 8))), size=(height, width))
        exif = Image.Exif()
        exif[274] = i % 8 + 1  # orientation
        image = Image.fromarray((255 * pixels[0].permute(1, 2, 0).numpy()).astype(np.uint8))
        image.save(tmp_path / f"{i:02d}.jpg", exif=exif)
    source = open_source(tmp_path, "all")
    sizes = [source.open(i).size for i in range(12)]
    total = sum(3 * height * width for height, width in sizes)
    views = Views(size=8, crop_area=(0.1, 0.3))
    expected = list(batches_of(Streamed, source, batch=6, seed=3, views=views, workers=0)(range(4)))
    for options, is_decoded in (
        ({"max_decoded": total}, True), ({"max_decoded": total - 1}, False), ({"decode": "fast"}, False),
        ({"storage": "streamed"}, False), ({"workers": 2, "start_method": "spawn"}, False),
    ):  # fmt: skip
        batches = batches_of(open_batches, source, batch=6, seed=3, views=views, **{"workers": 0, **options})
        assert (batches._crops.decoded is not None) == is_decoded
        if is_decoded:
            assert all(same(one, other) for one, other in zip(batches(range(4)), expected, strict=True))
    own = open_source([Image.new("RGB", size[::-1]) for size in sizes], "all")  # which may return others each time
    assert batches_of(open_batches, own, batch=6, seed=3, workers=0)._crops.decoded is None
    monkeypatch.setattr(crops, "free_memory", lambda device: total / crops.PART_OF_FREE)
    for cells, is_decoded in (("1", True), ("2", False)):  # that share the memory
        monkeypatch.setenv(PARALLEL, cells)
        batches = batches_of(open_batches, source, batch=6, seed=3, workers=0)
        assert (batches._crops.decoded is not None) == is_decoded


@pytest.mark.parametrize("storage", ["auto", "streamed"])
def test_views_are_cut_from_the_reduced_images(folder, tmp_path, storage):
    """The same as of a folder of the reduced images."""
    for i in range(len(folder)):
        with contextlib.suppress(UnreadableImage):
            Image.fromarray(folder.open(i).reduced(7).read().pixels).save(tmp_path / folder.path(i))
    for name in ("05.png", "11.png", "23.png"):
        (tmp_path / name).write_bytes(b"not an image")
    options = {"batch": 20, "seed": 7, "workers": 0, "max_bad": 0.2, "storage": storage}
    found = list(batches_of(open_batches, dataclasses.replace(folder, side=7), **options)(range(3)))
    expected = list(batches_of(open_batches, open_source(tmp_path, "all"), **options)(range(3)))
    whole = list(batches_of(open_batches, folder, **options)(range(3)))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert not any(same(one, other) for one, other in zip(found, whole, strict=True))


def test_loading_gives_the_images_and_the_unreadable_ones(even, even_pixels):
    loaded = load_images(even)
    assert list(loaded.bad) == [4]
    assert np.array_equal(np.delete(loaded.images, 4, 0), np.delete(even_pixels, 4, 0))
    assert not loaded.images[4].any()


def test_images_that_do_not_fit_a_gpu_are_streamed(even, monkeypatch):
    free = 2 * load_images(even).images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    monkeypatch.setattr(Resident, "__init__", lambda self, *a, **k: None)  # there is no such device here
    options = {"batch": 8, "seed": 0, "device": "cuda", "workers": 0}
    assert isinstance(batches_of(open_batches, even, **options), Resident)
    free -= 2
    assert isinstance(batches_of(open_batches, even, **options), Streamed)
    assert isinstance(batches_of(open_batches, even, storage="resident", **options), Resident)


MIXED = (Views(size=8), Views(size=8, grey=1.0), Views(size=6, crop_area=(0.1, 0.4)), Views(size=6), Views(size=6))


def test_views_of_several_sizes_are_those_of_their_policies(even, even_pixels):
    (batch,) = Resident(even, MIXED, BatchSampler(30, 10, 5))(range(1))
    assert [group.shape for group in batch.views] == [(2, 10, 3, 8, 8), (3, 10, 3, 6, 6)]
    for group in batch.views:
        assert group.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    views = [view for group in batch.views for view in group]
    for v, (policy, view) in enumerate(zip(MIXED, views, strict=True)):
        expected = policy.apply(even_pixels[batch.indices], policy.draw(batch.indices, 0, v, 5, (10, 12)))
        assert torch.equal(view, expected)
    pair = next(iter(batches_of(Resident, even, batch=10, seed=5)(range(1))))
    assert torch.equal(pair.views[0][0], views[0])  # whatever else there is, a view of a number is the same


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_views_of_several_sizes_are_cut_from_one_decoding(folder, workers, monkeypatch):
    reads = []
    read = decoding.LazyImage.read
    monkeypatch.setattr(decoding.LazyImage, "read", lambda *a: reads.append(1) or read(*a))
    loading = Loading(workers=workers, max_bad=0.2)
    (batch,) = Streamed(folder, MIXED, BatchSampler(37, 20, 7), loading)(range(1))
    assert [group.shape for group in batch.views] == [(2, 20, 3, 8, 8), (3, 20, 3, 6, 6)]
    assert workers or len(reads) == 20
    for k in (0, 13):
        image = folder.read(batch.indices[k])
        for v, (policy, view) in enumerate(zip(MIXED, (view for group in batch.views for view in group), strict=True)):
            one = policy.draw(batch.indices[k : k + 1], 0, v, 7, image.shape[:2])
            crop = torch.from_numpy(policy.crop(image, one.crop[0], one.flip[0]))[None]
            assert torch.equal(view[k], policy.colour(crop, one)[0])


def test_fast_decoding_keeps_the_pixels_of_every_view(tmp_path, monkeypatch):
    source, parts = photographs(tmp_path, 900), []
    read = decoding.LazyImage.read
    monkeypatch.setattr(decoding.LazyImage, "read", lambda *a: parts.append(a[2]) or read(*a))
    large, small = Views(size=120, crop_area=(0.9, 1.0)), Views(size=6, crop_area=(0.9, 1.0))
    for policies, most in (((large, small), 7), ((small, small), 8)):
        next(iter(Streamed(source, policies, BatchSampler(8, 8, 3), Loading(workers=0, decode="fast"))(range(1))))
        assert max(parts) <= most
    assert max(parts) == 8


def test_compiled_views_are_for_a_gpu():
    for compile in (True, False):
        assert batches._backend(Loading(compile=compile), torch.device("cpu")) == "auto"
    assert batches._backend(Loading(compile=True), torch.device("cuda")) == "compiled"
    assert batches._backend(Loading(), torch.device("cuda")) == "auto"
