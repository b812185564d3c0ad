"""Labels mean what their writers meant: missing ones have no class, equal ones have one class."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from simclr.data import open_source
from simclr.data.labels import annotation_of, encode_labels, join_columns, sort_classes
from simclr.data.multilabel import class_names, targets
from simclr.data.specs import open_for_pretraining
from simclr.errors import DataError
from simclr.training.batches import Loading, open_batches
from simclr.training.sampler import BatchSampler
from simclr.views import Views

PICTURES = [Image.fromarray(np.full((6, 5, 3), k, np.uint8)) for k in range(40)]


class Items:
    """40 images with labels in the items, of which `damaged` raise; counts the reads."""

    def __init__(self, label=lambda i: i % 3, damaged=()):
        self.label, self.damaged, self.reads = label, damaged, 0

    def __len__(self):
        return 40

    def __getitem__(self, i):
        self.reads += 1
        if i in self.damaged:
            raise OSError("cannot identify image file")
        return PICTURES[i], self.label(i)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (np.array([0.0, 1, 2, -1, -1, 10]), [0, 1, 2, -1, -1, 3], ["0.0", "1.0", "2.0", "10.0"]),
        (np.array([0.0, np.nan, 2, np.nan]), [0, -1, 1, -1], ["0.0", "2.0"]),
        (np.array([b"a", b"b", b"", b"a"]), [0, 1, -1, 0], ["a", "b"]),
        (np.array([3, -1, 20]), [0, -1, 1], ["3", "20"]),
        ([None, "b", "", " a "], [-1, 1, -1, 0], ["a", "b"]),
        (["-1.0", "0.0", "-7"], [-1, 0, -1], ["0.0"]),
        ([torch.tensor(-1), torch.tensor(4), np.int64(4)], [-1, 0, 0], ["4"]),
        ([float("nan"), 1.5], [-1, 0], ["1.5"]),
        (["cafe\u0301", "caf\u00e9", "tea"], [0, 0, 1], ["caf\u00e9", "tea"]),
        (["b|a", "a|b", "|", "a|"], [1, 1, 2, 0], ["a|", "a|b", "|"]),
        ([[1, 0, 1], [0, 0, 0]], [0, 1], ["0|2", "|"]),
        ([np.nan, None, b"", -3], None, None),
    ],
)
def test_what_is_a_class_and_what_is_none(values, labels, classes):
    encoded, names = encode_labels(values)
    assert names == classes
    assert (None if encoded is None else encoded.tolist()) == labels


def test_the_order_of_classes_does_not_depend_on_the_hash_seed():
    """The seed decides in which order a set is read, so every order is tried."""
    for classes in (("01", "1", "02", "2", "10"), ("01", "02", "1", "10", "x")):
        assert {tuple(sort_classes(names)) for names in itertools.permutations(classes)} == {classes}


def test_columns_of_an_object_are_multi_label():
    items = Items()
    items.labels = np.eye(3, dtype=int)[np.arange(40) % 3]
    source = open_source(items, "all")
    assert class_names(source) == ["0", "1", "2"]
    assert np.array_equal(targets(source), items.labels.astype(bool))
    assert items.reads == 3  # those that tell whether it is a data set
    items.labels = np.arange(80).reshape(40, 2)
    with pytest.raises(DataError):
        open_source(items, "all").labels  # noqa: B018
    items.labels = torch.arange(40)[:, None] % 2
    assert open_source(items, "all").labels.tolist() == [0, 1] * 20


def test_columns_of_0_and_1_become_lists_of_classes():
    columns = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert join_columns(columns, "x").tolist() == ["0|2", "|", "1|"]
    assert join_columns(np.array([[3], [4]]), "x").tolist() == [3, 4]
    with pytest.raises(DataError) as error:
        join_columns(columns + 1, "x.npz")
    assert error.value.path == "x.npz"


def test_names_of_an_attribute_are_used():
    items = Items()
    items.targets, items.classes = [0, 1, -1, 1] * 10, ["cat", "dog"]
    labels, classes = annotation_of(items)
    assert classes == ["cat", "dog"] and labels[:4].tolist() == [0, 1, -1, 1]


def test_a_damaged_item_has_no_label_and_its_error_is_kept_for_reading():
    source = open_source(Items(damaged=(0, 7)), "all")
    assert source.labels[:9].tolist() == [-1, 1, 2, 0, 1, 2, 0, -1, 2]


def test_labels_of_items_are_read_once_for_all_selections():
    items = Items()
    source = open_source(items, "all")
    before = items.reads
    train, test = open_source(source, "train"), open_source(source, "test")
    few = train.select(np.arange(5), "train").select(np.array([4, 2]), "train")
    assert few.labels.tolist() == [int(few.path(0)) % 3, int(few.path(1)) % 3]
    assert (train.labels >= 0).all() and (test.labels >= 0).all()
    assert items.reads - before <= len(items) + 1


@pytest.mark.parametrize("storage", ["auto", "streamed"])
def test_a_damaged_item_is_replaced_in_training(storage):
    source = open_for_pretraining(Items(lambda i: i % 3, damaged=(7,)))
    assert "7" in all_names(source)
    loading = Loading(storage=storage, workers=0, max_bad=0.5)
    batches = open_batches(source, (Views(size=8),), BatchSampler(len(source), 16, 0), loading, "cpu")
    assert len(list(batches(range(4)))) == 4
    assert list(batches.bad) == ["7"]


def all_names(source):
    return [source.path(i) for i in range(len(source))]
