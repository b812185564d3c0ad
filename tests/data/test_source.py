"""Every layout of a data set opens to the same images, in the same order, on every machine."""

import os
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from simclr.data import Source, UnreadableImage, open_source
from simclr.errors import DataError

NAMES = ["b.JPG", "a.png", "Ünï cödé/c d.jpeg", "deep/er/e.WebP", "deep/f.tif", "deep/é.BMP"]


def picture(k: int, size: tuple[int, int] = (5, 7)) -> Image.Image:
    return Image.fromarray(np.full((*size, 3), 10 * (k % 20), np.uint8))


def write(root, names):
    for k, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(file)
    return root


def all_paths(source: Source) -> list[str]:
    return [source.path(i) for i in range(len(source))]


def test_a_nested_folder_of_mixed_files(tmp_path):
    root = write(tmp_path / "my photos", NAMES)
    for hidden in (".hidden.png", ".cache/x.png", "._b.JPG"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"x")
    (root / "notes.txt").write_text("not an image")
    elsewhere = write(tmp_path / "elsewhere", ["linked.png"])
    (root / "link").symlink_to(elsewhere)
    (root / "deep/loop").symlink_to(root)
    (root / "one.png").symlink_to(root / "a.png")
    (root / "broken.png").symlink_to(root / "nowhere.png")
    source = open_source(root, "all")
    expected = sorted([*NAMES, "link/linked.png", "one.png", "broken.png"], key=os.fsencode)
    assert all_paths(source) == expected
    assert source.labels is None
    assert source.classes is None
    assert source.images is None
    assert source.name == "my photos"
    for i, name in enumerate(expected):
        if name in NAMES:
            image = source.read(i)
            assert image.shape == (5, 7, 3)
            assert abs(image.mean() - 10 * NAMES.index(name)) < 3
    with pytest.raises(UnreadableImage) as error:
        source.read(expected.index("broken.png"))
    assert error.value.path == "broken.png"


def test_order_does_not_depend_on_the_order_in_which_the_system_lists_files(tmp_path, monkeypatch):
    root = write(tmp_path, [f"{folder}/{k}.png" for folder in "xyz" for k in range(5)])
    before = open_source(root)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = list(entries)
            random.Random(len(self.entries)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return iter(self.entries)

    assert [e.name for e in Shuffled(root / "x").entries] != sorted(e.name for e in Shuffled(root / "x").entries)
    monkeypatch.setattr(os, "scandir", Shuffled)
    after = open_source(root)
    assert all_paths(after) == all_paths(before)
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.labels, before.labels)


def test_first_level_folders_are_the_classes(tmp_path):
    source = open_source(write(tmp_path, ["10/a.png", "9/b.png", "9/sub/c.png"]), "all")
    assert source.classes == ["9", "10"]
    assert {source.path(i): source.classes[k] for i, k in enumerate(source.labels)} == {
        "10/a.png": "10",
        "9/b.png": "9",
        "9/sub/c.png": "9",
    }


def test_a_folder_may_be_called_like_a_negative_number(tmp_path):
    source = open_source(write(tmp_path, ["-1/a.png", "5/b.png"]), "all")
    assert source.classes == ["-1", "5"]
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize("names", [["cat/a.png", "dog/b.png", "c.png"], ["cat/a.png", "cat/b.png"]])
def test_a_folder_without_clear_classes_has_no_labels(tmp_path, names):
    assert open_source(write(tmp_path, names), "all").labels is None


@pytest.mark.parametrize("test", ["test", "val", "Val"])
def test_a_folder_with_its_own_split(tmp_path, test):
    names = ["train/cat/1.png", "train/dog/2.png", f"{test}/dog/3.png", "other/4.png", "5.png"]
    root = write(tmp_path, names)
    train, held_out, everything = (open_source(root, split) for split in ("train", "test", "all"))
    assert all_paths(train) == names[:2]
    assert all_paths(held_out) == [names[2]]
    assert sorted(all_paths(everything)) == sorted(names[:3])
    assert all_paths(open_source(root, "pretrain")) == names[:2]
    assert train.classes == held_out.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0, 1]
    assert held_out.labels.tolist() == [1]
    assert train.has_own_split


def test_val_is_not_read_where_there_is_a_test_folder(tmp_path):
    root = write(tmp_path, ["train/1.png", "val/2.png", "test/3.png"])
    assert all_paths(open_source(root, "test")) == ["test/3.png"]
    assert all_paths(open_source(root, "all")) == ["test/3.png", "train/1.png"]


def test_the_hold_out_of_an_unsplit_source_is_a_fifth():
    items = [picture(i % 20) for i in range(500)]
    train, test = (open_source(items, split) for split in ("train", "test"))
    assert sorted(all_paths(train) + all_paths(test), key=int) == [str(i) for i in range(500)]
    assert len(test) == 100 and not train.has_own_split
    assert len(open_source(items, "pretrain")) == 500
    assert test.read(50)[0, 0, 0] == 10 * (int(test.path(50)) % 20)


def test_a_list_keeps_its_order_and_is_relative_to_itself(tmp_path, monkeypatch):
    root = write(tmp_path / "data", NAMES)
    chosen = [NAMES[3], NAMES[0], NAMES[2]]
    (root / "list.txt").write_text("\ufeff" + chosen[0] + "\r\n\n" + "\n".join(chosen[1:]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    source = open_source("data/list.txt", "all")
    assert all_paths(source) == chosen
    assert abs(source.read(1).mean() - 0) < 3


def test_a_table_with_labels_and_a_split(tmp_path):
    root = write(tmp_path, NAMES)
    rows = [
        (NAMES[4], "zebra", "train"),
        (NAMES[1], "", "train"),
        (NAMES[2], "ape", "test"),
        (NAMES[3], "ape", "val"),
    ]
    (root / "t.csv").write_text("path,label,split\n" + "\n".join(",".join(row) for row in rows), encoding="utf-8")
    train, test = (open_source(root / "t.csv", split) for split in ("train", "test"))
    assert all_paths(train) == [NAMES[4], NAMES[1]]
    assert all_paths(test) == [NAMES[2]]
    assert train.classes == test.classes == ["ape", "zebra"]
    assert train.labels.tolist() == [1, -1]
    assert test.labels.tolist() == [0]
    (root / "plain.csv").write_text("label,path\nx,a.png\ny,b.JPG\n")
    plain = open_source(root / "plain.csv", "all")
    assert all_paths(plain) == ["a.png", "b.JPG"]
    assert plain.labels.tolist() == [0, 1]


def test_arrays_in_a_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), np.uint8)
    np.savez(tmp_path / "rgb.npz", images=images, labels=np.arange(30) % 3 + 4)
    source = open_source(tmp_path / "rgb.npz", "all")
    assert np.array_equal(source.images, images)
    assert source.classes == ["4", "5", "6"]
    assert source.labels.tolist() == [k % 3 for k in range(30)]
    train, test = (open_source(tmp_path / "rgb.npz", split) for split in ("train", "test"))
    joined = np.concatenate([train.images, test.images])
    rows = [int(path) for path in all_paths(train) + all_paths(test)]
    assert sorted(rows) == list(range(30))
    assert np.array_equal(joined, images[rows])
    np.savez(tmp_path / "grey.npz", images=images[..., 0])
    grey = open_source(tmp_path / "grey.npz", "all")
    assert np.array_equal(grey.images, np.stack([images[..., 0]] * 3, -1))
    assert grey.labels is None


def test_pairs_of_arrays_are_the_split(tmp_path):
    images = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2)
    np.savez(
        tmp_path / "pairs.npz",
        train_images=images[:3],
        val_images=images[3:],
        train_labels=np.array([[2], [0], [2]]),
        val_labels=np.array([[1], [0]]),
    )
    train, test, everything = (open_source(tmp_path / "pairs.npz", split) for split in ("train", "test", "all"))
    assert np.array_equal(test.images[..., 1], images[3:])
    assert train.labels.tolist() == [2, 0, 2]
    assert test.labels.tolist() == [1, 0]
    assert train.classes == test.classes == ["0", "1", "2"]
    assert train.has_own_split
    assert np.array_equal(everything.images[..., 0], images)
    assert all_paths(everything) == ["train/0", "train/1", "train/2", "test/0", "test/1"]


def test_objects_give_images_alone_with_a_label_or_in_a_dict():
    torch = pytest.importorskip("torch")
    rgb = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    forms = [
        [Image.fromarray(image) for image in rgb],
        list(rgb),
        [torch.from_numpy(image).permute(2, 0, 1) for image in rgb],
        [(image, label) for image, label in zip(rgb, "ba", strict=True)],
        [{"image": image, "label": label} for image, label in zip(rgb, "ba", strict=True)],
    ]
    for k, items in enumerate(forms):
        source = open_source(items, "all")
        assert all(np.array_equal(source.read(i), rgb[i]) for i in range(2))
        assert source.labels is None if k < 3 else source.labels.tolist() == [1, 0]
        assert source.classes == (None if k < 3 else ["a", "b"])


def test_objects_are_reduced_like_files(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    picture.save(tmp_path / "0.png")
    objects, files = (replace(open_source(data, "all"), side=8) for data in ([picture], tmp_path))
    assert objects.read(0).shape == (8, 12, 3)
    assert np.array_equal(objects.read(0), files.read(0))


def test_an_object_that_raises_is_an_unreadable_image():
    class Broken:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return [Image.new("RGB", (3, 3))][i]

    with pytest.raises(UnreadableImage) as error:
        open_source(Broken(), "all").read(1)
    assert error.value.path == "1" and "IndexError" in error.value.reason


def test_an_open_source_is_split_only_once(tmp_path):
    whole = open_source(write(tmp_path, [f"{k}.png" for k in range(40)]), "all")
    train, test = open_source(whole, "train"), open_source(whole, "test")
    assert sorted(all_paths(train) + all_paths(test)) == sorted(all_paths(whole))
    assert open_source(train, "train") is train
    with pytest.raises(DataError) as error:
        open_source(train, "test")
    assert error.value.path == train.name


def test_sources_survive_pickling(tmp_path):
    source = open_source(write(tmp_path, NAMES))
    copy = pickle.loads(pickle.dumps(source))
    assert all_paths(copy) == all_paths(source)
    assert copy.fingerprint == source.fingerprint
    assert np.array_equal(copy.read(0), source.read(0))


def test_the_fingerprint_follows_names_sizes_and_number(tmp_path):
    root = write(tmp_path, ["a.png", "b.png"])
    fingerprints = [open_source(root, "all").fingerprint]
    (root / "a.png").rename(root / "c.png")
    fingerprints.append(open_source(root, "all").fingerprint)
    picture(3, (50, 60)).save(root / "c.png")
    fingerprints.append(open_source(root, "all").fingerprint)
    picture(3).save(root / "d.png")
    fingerprints.append(open_source(root, "all").fingerprint)
    assert len(set(fingerprints)) == 4
    assert open_source(root, "all").fingerprint == fingerprints[-1]
