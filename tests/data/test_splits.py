"""Few labels: as many of each class, nested, the same when a data set grows; and labels that name several classes."""

import numpy as np
import pytest
from PIL import Image

from simclr.data import open_source
from simclr.data.labels import join_columns
from simclr.data.multilabel import class_names, targets
from simclr.data.splits import rows_from_list, stratified_subset


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
    table.write_text("a/3.png\nb/29.png\n\n49.png\n")
    assert [source.path(i) for i in rows_from_list(source, table)] == ["a/3.png", "a/49.png", "b/29.png"]
    table.write_text("a/3.png\nd/1.png\n")
    with pytest.raises(ValueError, match=r"1 of the 2 names .* such as 'd/1.png'; its own look like 'a/0.png'"):
        rows_from_list(source, table)
    with pytest.raises(ValueError, match="does not exist"):
        rows_from_list(source, tmp_path / "nowhere.txt")


def test_a_file_name_of_several_images_names_none_of_them(source, tmp_path):
    table = tmp_path / "few.txt"
    table.write_text("49.png\n3.png\n")
    with pytest.raises(ValueError, match=r"several images of images\S* have the file name '3.png'.* such as 'a/3.png'"):
        rows_from_list(source, table)


def test_a_tenth_is_held_out_whatever_else_is_there():
    rows = np.arange(20_000)
    held_out = held_out_rows(rows, 0)
    assert abs(held_out.mean() - 0.1) < 0.01
    assert np.array_equal(held_out_rows(rows[::7], 0), held_out[::7])


def test_columns_of_classes_become_labels_and_columns_again(tmp_path):
    columns = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]])
    assert join_columns(columns, "x")[:3].tolist() == ["0|2", "|", "1|"]
    images = np.zeros((6, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=columns)
    source = open_source(tmp_path / "x.npz", "all")
    assert class_names(source) == ["0", "1", "2"]
    assert np.array_equal(targets(source), columns.astype(bool))
    with pytest.raises(ValueError, match="of 0 and 1"):
        joined(columns + 1)


def test_single_labels_stay_as_they_are(source):
    assert class_names(source) == ["a", "b", "c"]
    assert targets(source) is source.labels
    assert join_columns(np.array([[3], [4]]), "x").tolist() == [3, 4]
