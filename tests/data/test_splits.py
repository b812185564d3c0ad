"""Hold-outs and subsets: stratified, of exact size, and functions of the names alone."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.multilabel import class_names, present_classes, rarest_class, targets
from simclr.data.splits import (
    drop_unseen_classes,
    holdout_mask,
    rows_from_list,
    sample,
    sample_rows,
    split_off,
    stratified_subset,
)
from simclr.errors import DataError, SettingError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three classes of 50, 30 and 4 images of one pixel."""
    root = tmp_path_factory.mktemp("images")
    for name, count in (("a", 50), ("b", 30), ("c", 4)):
        (root / name).mkdir()
        for i in range(count):
            Image.new("RGB", (1, 1)).save(root / name / f"{i}.png")
    return open_source(root, "all")


def names(source):
    return {source.path(i) for i in range(len(source))}


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.01, [1, 1, 1]), (0.1, [5, 3, 1]), (0.5, [25, 15, 2]), (1.0, [50, 30, 4])]
)
def test_each_class_gives_its_share_and_at_least_one(source, fraction, counts):
    assert np.bincount(stratified_subset(source, fraction).labels).tolist() == counts


def test_smaller_shares_lie_in_larger_ones_and_seeds_differ(source):
    assert names(stratified_subset(source, 0.1)) < names(stratified_subset(source, 0.5)) < names(source)
    assert names(stratified_subset(source, 0.1, seed=1)) != names(stratified_subset(source, 0.1))


def test_the_choice_depends_on_names_alone(source):
    order = np.random.default_rng(0).permutation(len(source))
    assert names(stratified_subset(source.select(order, "all"), 0.1)) == names(stratified_subset(source, 0.1))


def test_a_list_names_images_by_path_or_by_file_name(source, tmp_path):
    table = tmp_path / "few.txt"
    table.write_text("\ufeff# chosen\n  a/3.png\nb/29.png\n\n49.png\n", encoding="utf-8")
    assert [source.path(i) for i in rows_from_list(source, table)] == ["a/3.png", "a/49.png", "b/29.png"]
    for text in ("a/3.png\nd/1.png\n", "\n", "49.png\n3.png\n"):  # unknown, none, and a name of several images
        table.write_text(text)
        with pytest.raises(DataError) as error:
            rows_from_list(source, table)
        assert error.value.path == str(table)
        assert bool(error.value.remedy) == text.startswith("49.png")
    for name, text in (("few.csv", "path\na/3.png\n"), ("few.txt", "path;label\na/3.png;a\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError) as error:
            rows_from_list(source, tmp_path / name)
        assert error.value.remedy
    train, test = source.select(np.arange(20), "train"), source.select(np.arange(20, len(source)), "test")
    outside = test.path(0)
    table.write_text(f"{train.path(0)}\n{outside}\n")
    with pytest.raises(DataError) as error:
        rows_from_list(train, table, test)
    assert error.value.names == (outside,)
    with pytest.raises(SettingError) as error:
        rows_from_list(source, tmp_path / "nowhere.txt")
    assert error.value.field == "labelled"


@pytest.mark.parametrize("size", [0.1, 0.2, 17])
def test_a_hold_out_is_stratified_and_of_exact_size(source, size):
    mask = holdout_mask(source, size)
    assert mask.sum() == (size if isinstance(size, int) else round(size * 84))
    counts = np.bincount(source.labels[mask], minlength=3)
    exact = np.array([50, 30, 4]) * mask.sum() / 84
    assert (np.abs(counts - exact) < 1).all()


def test_a_hold_out_depends_on_names_and_seed_alone(source):
    order = np.random.default_rng(0).permutation(len(source))
    for seed in (None, 0, 1):
        mask = holdout_mask(source, 0.2, seed)
        assert np.array_equal(holdout_mask(source.select(order, "all"), 0.2, seed), mask[order])
    assert (holdout_mask(source, seed=0) != holdout_mask(source, seed=1)).any()


def test_a_class_of_one_image_stays_in_training(tmp_path):
    for name in [f"a/{k}" for k in range(9)] + ["b/0", "c/0", "d/0", "d/1"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (1, 1)).save(tmp_path / f"{name}.png")
    train, test = (open_source(tmp_path, split) for split in ("train", "test"))
    assert present_classes(train) == {0, 1, 2, 3} and len(test) == 3
    with pytest.raises(DataError):  # nothing can be held out of two classes of one image
        open_source(open_source(tmp_path, "all").select(np.array([0, 9]), "all"), "test")


def test_images_of_classes_without_training_images_are_dropped_and_named(source, capsys):
    train = source.select(np.flatnonzero(source.labels < 2), "train")
    kept = drop_unseen_classes(train, source)
    assert np.bincount(kept.labels).tolist() == [50, 30] and kept.classes == source.classes
    assert "c" in capsys.readouterr().err.partition("(")[2]
    assert drop_unseen_classes(source, train) is train and not capsys.readouterr().err
    with pytest.raises(DataError):
        drop_unseen_classes(train, source.select(np.flatnonzero(source.labels == 2), "test"))


def test_a_hold_out_of_many_images_changes_little_when_some_are_added():
    class Pictures(list):
        def __getitem__(self, i):
            return Image.new("RGB", (1, 1))

    before, after = (names(open_source(Pictures(range(n)), "test")) for n in (5000, 6000))
    assert len(before) == 1000 and len(after) == 1200
    assert len(before - after) < 0.03 * 1000


def test_multi_label_images_are_held_out_by_their_rarest_class(tmp_path):
    columns = np.zeros((60, 3), int)
    columns[:, 0], columns[::4, 1], columns[::30, 2] = 1, 1, 1
    np.savez(tmp_path / "x.npz", images=np.zeros((60, 2, 2, 3), np.uint8), labels=columns)
    source = open_source(tmp_path / "x.npz", "all")
    assert class_names(source) == ["0", "1", "2"] and np.array_equal(targets(source), columns.astype(bool))
    assert np.bincount(rarest_class(source)).tolist() == [44, 14, 2]
    train = open_source(source, "train")
    assert present_classes(train) == {0, 1, 2}
    assert class_names(drop_unseen_classes(train, open_source(source, "test"))) == class_names(source)


def test_a_sample_has_the_smallest_hashes(source):
    rows = sample_rows(source, 9)
    assert np.array_equal(rows, np.argsort(source.paths.hashes)[:9])
    assert names(sample(source, 9)) == {source.path(i) for i in rows}
    assert sample(source, 84) is source


def test_images_are_split_off_without_an_overlap(source):
    rest, held_out = split_off(source, 10)
    assert len(held_out) == 10 and names(rest) | names(held_out) == names(source) and len(rest) == 74
    assert names(held_out) == names(sample(source, 10))
    with pytest.raises(SettingError) as error:
        split_off(source, 83)
    assert error.value.field == "held_out"


def test_single_labels_stay_as_they_are(source):
    assert class_names(source) == ["a", "b", "c"]
    assert targets(source) is source.labels


def test_a_hold_out_of_groups_depends_on_names_alone(source):
    grouped = dataclasses.replace(source, groups=np.arange(len(source)) // 2)
    order = np.random.default_rng(1).permutation(len(source))
    for seed in (None, 0):
        mask = holdout_mask(grouped, 0.3, seed)
        other = grouped.select(order, "all")
        other = dataclasses.replace(other, groups=len(source) - other.groups)  # numbered in the other direction
        assert np.array_equal(holdout_mask(other, 0.3, seed), mask[order])


def test_every_class_keeps_an_image_however_many_are_held_out(source):
    few = source.select(np.flatnonzero((source.labels == 0) | (np.arange(len(source)) % 31 == 19)), "all")
    for size in (0.5, 0.9, 1.0):
        mask = holdout_mask(few, size)
        assert present_classes(few.select(np.flatnonzero(~mask), "all")) == present_classes(few)
        assert mask.sum() <= len(few) - len(present_classes(few))
