"""Batch sampler: batches and replacements of unreadable images are functions of the step."""

import numpy as np
import pytest

from simclr.data.paths import Paths
from simclr.data.source import Files
from simclr.errors import TooManyBadImages, UnreadableImage
from simclr.training.sampler import BadImages, BatchSampler


def test_each_epoch_is_another_permutation_cut_into_whole_batches():
    sampler = BatchSampler(103, 10, seed=3)
    assert sampler.steps_per_epoch == 10
    epochs = [np.concatenate([sampler.indices(10 * e + k) for k in range(10)]) for e in range(3)]
    for e, visited in enumerate(epochs):
        assert len(set(visited)) == 100
        assert sampler.epoch(10 * e + 9) == e
        assert visited.min() >= 0
        assert visited.max() < 103
    assert not np.array_equal(epochs[0], epochs[1])
    neighbours = [{frozenset(pair) for pair in zip(e[:-1].tolist(), e[1:].tolist(), strict=True)} for e in epochs]
    assert len(neighbours[0] & neighbours[1]) < 12  # 99 pairs of 5253 are expected to share about 2
    other = BatchSampler(103, 10, seed=4)
    assert not np.array_equal(sampler.indices(0), other.indices(0))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_processes_share_each_batch_evenly(world):
    whole = BatchSampler(50, 8, seed=1)
    shares = [BatchSampler(50, 8, seed=1, rank=r, world=world) for r in range(world)]
    for step in range(14):
        parts = [share.indices(step) for share in shares]
        assert {len(part) for part in parts} == {8 // world}
        assert np.array_equal(np.concatenate(parts), whole.indices(step))


def test_replacements_depend_on_the_epoch():
    sampler = BatchSampler(10**5, 10**5, seed=0)
    assert len({next(sampler.replacements(epoch, 5)) for epoch in range(3)}) == 3


def test_replacements_come_from_outside_the_batch_while_there_are_any():
    sampler = BatchSampler(100, 50, seed=0)
    for step in range(4):
        tried = [i for _, i in zip(range(32), sampler.replacements(step, 5), strict=False)]
        inside = np.isin(tried, sampler.whole(step))
        assert 8 < inside.sum() < 24
        assert np.array_equal(inside, np.sort(inside))


def test_unreadable_replacements_count_among_the_images_tried(tmp_path):
    source = Files(name="s", root=tmp_path, paths=Paths.numbered("image", 1000))
    errors = [UnreadableImage(source.path(i), "empty file") for i in range(30)]
    record = BadImages(source, 0.5)
    record.record(np.arange(8), errors[:19])
    assert (len(record.reasons), record.tried) == (19, 19)
    with pytest.raises(TooManyBadImages):
        record.record(np.arange(8), errors)
    assert (len(record.reasons), record.tried) == (30, 30)
