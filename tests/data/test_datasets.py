"""CIFAR-10 in all its forms is CIFAR-10; pickles cannot run code; the sample is the first of each class."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest

from simclr.data import open_source
from simclr.data.datasets import CIFAR10
from simclr.data.specs import find_test_images
from simclr.errors import DataError

SHA256 = {
    "train": (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    "test": (
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
}
TEST_BATCH_MD5 = "803d5f7f4d78ea53de84dbe85f74fb6d"  # of the official test_batch.bin


@pytest.fixture(scope="module")
def zips(shared):
    return shared("data/cifar10")


@pytest.fixture(scope="module")
def test_part(zips):
    return open_source(f"cifar10:{zips}", "test")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_zips_hold_the_official_arrays(zips, split):
    source = open_source(f"cifar10:{zips}", split)
    assert hashlib.sha256(source.images.tobytes()).hexdigest() == SHA256[split][0]
    assert hashlib.sha256(source.labels.astype(np.uint8).tobytes()).hexdigest() == SHA256[split][1]
    assert source.classes == CIFAR10
    assert source.has_own_split
    assert source.path(7) == f"{split}/7"


def test_a_zip_that_is_none_is_named(tmp_path):
    for name in ("cifar10_train_a.zip", "cifar10_train_b.zip", "cifar10_test.zip"):
        (tmp_path / name).write_bytes(b"PK no zip")
    with pytest.raises(DataError) as error:
        open_source(f"cifar10:{tmp_path}", "test")
    assert error.value.path == str(tmp_path / "cifar10_test.zip")


def records(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.hstack([labels.astype(np.uint8)[:, None], images.transpose(0, 3, 1, 2).reshape(-1, 3072)]).tobytes()


def test_the_official_binary_form(test_part, tmp_path):
    content = records(test_part.images, test_part.labels)
    assert hashlib.md5(content).hexdigest() == TEST_BATCH_MD5
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(content)
    for place in (tmp_path, folder):
        source = open_source(f"cifar10:{place}", "test")
        assert np.array_equal(source.images, test_part.images)
        assert np.array_equal(source.labels, test_part.labels)
    (folder / "test_batch.bin").write_bytes(content[:-1])
    with pytest.raises(DataError) as error:
        open_source(f"cifar10:{tmp_path}", "test")
    assert error.value.path == str(folder / "test_batch.bin")


def python_2_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and its numpy wrote, as in the official files: byte strings throughout, protocol 2."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text("u1") + b"K\x00K\x01tR(K\x03" + text("|") + b"NNN"
    dtype += integer(-1) + integer(-1) + b"K\x00tb"
    pixels = b"T" + struct.pack("<i", rows.nbytes) + rows.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text("b") + b"tR"
    array += b"(K\x01(" + integer(rows.shape[0]) + integer(rows.shape[1]) + b"t" + dtype + b"\x89" + pixels + b"tb"
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    pairs = text("batch_label") + text("testing batch 1 of 1") + text("labels") + numbers + text("data") + array
    return b"\x80\x02}(" + pairs + b"u."


@pytest.mark.parametrize("protocol", ["python 2", 2, 4])
def test_the_official_python_form(test_part, tmp_path, protocol):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = test_part.images[:50], test_part.labels[:50].tolist()
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))
    if protocol == "python 2":
        content = python_2_batch(rows, labels)
    else:
        content = pickle.dumps({"labels": labels, "data": rows}, protocol)
    (folder / "test_batch").write_bytes(content)
    source = open_source(f"cifar10:{tmp_path}", "test")
    assert np.array_equal(source.images, images)
    assert source.labels.tolist() == labels


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.slow
def test_a_pickle_cannot_run_code(tmp_path):
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Harmful(str(tmp_path / "written")), "labels": []}))
    with pytest.raises(DataError) as error:
        open_source(f"cifar10:{tmp_path}", "test")
    assert error.value.path == str(tmp_path / "test_batch")
    assert not (tmp_path / "written").exists()


def test_the_sample_is_the_first_of_each_class(zips, test_part):
    for split, whole, count in (("train", open_source(f"cifar10:{zips}"), 500), ("test", test_part, 150)):
        source = open_source("sample", split)
        rank = np.array([(whole.labels[:i] == whole.labels[i]).sum() for i in range(12 * count)])
        chosen = np.flatnonzero(rank < count)
        assert np.array_equal(source.images, whole.images[chosen])
        assert np.array_equal(source.labels, whole.labels[chosen])


def test_the_sample_is_balanced_and_small():
    train, test = open_source("sample"), open_source("sample", "test")
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert np.bincount(test.labels).tolist() == [150] * 10
    assert len(open_source("sample", "all")) == 6500
    assert train.fingerprint != test.fingerprint
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


def test_a_torchvision_data_set_that_is_there_is_not_downloaded(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    for part, images in (("train", digits[:8]), ("t10k", digits[8:])):
        header = struct.pack(">iiii", 0x803, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(len(images)) % 3).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, len(images)) + labels.tobytes())
        with gzip.open(raw / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header)
    train, test, everything = (open_source(f"torchvision:FashionMNIST:{tmp_path}", s) for s in ("train", "test", "all"))
    assert np.array_equal(train.images, np.stack([digits[:8]] * 3, -1))
    assert np.array_equal(test.images[..., 2], digits[8:])
    assert len(everything) == 12
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert train.classes[:2] == ["T-shirt/top", "Trouser"]
    assert train.has_own_split


@pytest.mark.parametrize("name", ["DTD", "Flowers102", "FGVCAircraft"])
def test_the_official_validation_part_is_learned_from(name, tmp_path, monkeypatch):
    class Fake:
        """One image of each of two classes in each official part."""

        def __init__(self, folder, split):
            self.images = {"train": [1, 2], "val": [3, 4], "trainval": [1, 2, 3, 4], "test": [5, 6]}[split]
            self._labels = [k % 2 for k in self.images]

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return np.full((2, 2, 3), self.images[i], np.uint8), self._labels[i]

    monkeypatch.setattr(f"torchvision.datasets.{name}", Fake)
    for split, expected in (("train", [1, 2, 3, 4]), ("test", [5, 6]), ("all", [1, 2, 3, 4, 5, 6])):
        source = open_source(f"torchvision:{name}:{tmp_path}", split)
        assert [int(source.read(i)[0, 0, 0]) for i in range(len(source))] == expected
        assert source.labels.tolist() == [k % 2 for k in expected]
    assert find_test_images(f"torchvision:{name}:{tmp_path}").tolist() == [False] * 4 + [True] * 2  # names are numbers


def test_a_torchvision_data_set_that_cannot_be_had(tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.MNIST._check_legacy_exist", lambda self: False)
    with pytest.raises(DataError) as error:
        open_source(f"torchvision:MNIST:{tmp_path}")
    assert error.value.path == "torchvision:MNIST" and str(tmp_path) in capsys.readouterr().err


def test_an_incomplete_cifar10_says_what_is_needed(tmp_path):
    with pytest.raises(DataError) as error:
        open_source(f"cifar10:{tmp_path}")
    assert error.value.path == f"cifar10:{tmp_path}"
