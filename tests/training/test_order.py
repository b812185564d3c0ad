import itertools

import numpy as np
import pytest

from simclr.randomness import shuffled
from simclr.training.ahead import blocks
from simclr.training.order import BLOCK, ShardOrder
from simclr.training.sampler import BatchSampler


def starts(*sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


MANY = ShardOrder(starts(*(3 + k % 5 for k in range(50)), 0, 0, 7))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 97, 1000, 4099])
def test_a_shuffle_is_a_permutation_that_depends_on_its_name(n):
    orders = [shuffled(np.arange(n), n, 7, key) for key in range(3)]
    assert all((np.sort(order) == np.arange(n)).all() for order in orders)
    assert (shuffled(np.arange(n)[::-1], n, 7, 1) == orders[1][::-1]).all()
    assert n < 16 or not (orders[0] == orders[1]).all()


@pytest.mark.parametrize("n", [3, 10])
def test_every_image_is_as_likely_at_every_position_and_next_to_every_other(n):
    keys = 900
    orders = np.stack([shuffled(np.arange(n), n, key) for key in range(keys)])
    at = np.stack([(orders == k).sum(0) for k in range(n)]) / keys
    assert np.abs(at - 1 / n).max() < 5 * np.sqrt(1 / n / keys)
    pairs = np.zeros((n, n))
    np.add.at(pairs, (orders[:, 0], orders[:, 1]), 1 / keys)
    expected = (1 - np.eye(n)) / n / (n - 1)
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected.max() / keys)


def test_the_images_of_a_shuffle_are_pinned():
    """Runs resume with the batches they began with, so this order must never change."""
    assert shuffled(np.arange(10), 10, 1, 2).tolist() == PINNED
    assert MANY(3, 1, np.arange(8)).tolist() == PINNED_SHARDS


PINNED = [1, 7, 3, 4, 6, 9, 5, 2, 0, 8]
PINNED_SHARDS = [249, 194, 6, 5, 133, 226, 134, 136]


def test_an_epoch_is_a_permutation_that_reads_one_block_of_files_after_another():
    n = int(MANY.starts[-1])
    order = MANY(3, 1, np.arange(n))
    assert (np.sort(order) == np.arange(n)).all()
    shards = np.searchsorted(MANY.starts, order, side="right") - 1
    seen = []
    for start, files in MANY.blocks(3, 1, 0, n):
        bounds = MANY.block_at(3, 1, start)
        assert bounds[0] == start
        assert set(shards[slice(*bounds)]) == set(files.tolist()) and len(files) <= BLOCK
        seen += files.tolist()
    assert sorted(seen) == [*range(50), 52]  # files without images are left out
    assert not (MANY(3, 2, np.arange(n)) == order).all() and not (MANY(4, 1, np.arange(n)) == order).all()


def test_an_order_is_a_function_of_the_position():
    positions = np.random.default_rng(0).integers(0, 250, 40)
    assert (MANY(3, 1, positions) == MANY(3, 1, np.arange(250))[positions]).all()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_are_the_same_for_any_number_of_processes(world):
    n = int(MANY.starts[-1])
    alone = BatchSampler(n, 16, 5, order=MANY)
    ranks = [BatchSampler(n, 16, 5, rank, world, MANY) for rank in range(world)]
    for step in (0, 3, 16, 40):
        assert (np.concatenate([sampler.indices(step) for sampler in ranks]) == alone.whole(step)).all()
    epoch = np.concatenate([alone.whole(step) for step in range(alone.steps_per_epoch)])
    assert len(set(epoch.tolist())) == len(epoch)


def test_a_replacement_is_in_the_block_that_is_being_read():
    n = int(MANY.starts[-1])
    sampler = BatchSampler(n, 16, 5, order=MANY)
    bounds = MANY.block_at(5, 0, 3 * 16)
    near = set(MANY(5, 0, np.arange(*bounds)).tolist())
    assert set(itertools.islice(sampler.replacements(3, 8), 32)) <= near


def test_the_files_of_some_steps_are_known_before_they_are_read():
    n = int(MANY.starts[-1])
    sampler = BatchSampler(n, 16, 5, order=MANY)
    steps = range(4, 2 * sampler.steps_per_epoch + 3)
    listed = list(blocks(sampler, steps))
    assert [step for step, _ in listed] == sorted(step for step, _ in listed)
    for step in steps:
        needed = set((np.searchsorted(MANY.starts, sampler.whole(step), side="right") - 1).tolist())
        before = [set(files.tolist()) for first, files in listed if first <= step]
        assert needed <= before[-1] | before[-2] if len(before) > 1 else needed <= before[-1]
