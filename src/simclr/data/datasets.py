"""Data sets that are opened by name: CIFAR-10 in all its formats, the bundled sample of it, and torchvision's."""

import io
import pickle
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import ConcatDataset

from simclr.data.arrays import check_archive
from simclr.data.decoding import decode
from simclr.data.labels import annotation_of
from simclr.data.paths import Paths
from simclr.data.source import Arrays, ItemLabels, Objects, Source
from simclr.data.splits import Part, assemble, official_splits, select_split
from simclr.errors import DataError
from simclr.runs.files import printable
from simclr.runs.reading import open_regular, read_bytes

MAX_BATCH_BYTES = 1 << 30  # of a file of CIFAR-10; the official ones have 31 MB
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_BATCHES = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_ZIPS = {"train": ["cifar10_train_a.zip", "cifar10_train_b.zip"], "test": ["cifar10_test.zip"]}


def cifar10(folder: Path, split: str) -> Arrays:
    """Open CIFAR-10 (Krizhevsky 2009) in its official order, 50,000 + 10,000 images of 32 x 32.

    `folder` is, or contains, the official Python batches (cifar-10-batches-py), the official binary ones
    (cifar-10-batches-bin), or zips of lossless WebP strips (cifar10_train_a.zip, ...).
    """
    forms = [
        ("cifar-10-batches-py", "", _BATCHES, _pickled),
        ("cifar-10-batches-bin", ".bin", _BATCHES, _binary),
        ("", "", _ZIPS, strips),
    ]
    for inside, suffix, files, read in forms:
        for parent in dict.fromkeys((folder / inside, folder)):
            wanted = {part: [parent / f"{name}{suffix}" for name in names] for part, names in files.items()}
            if all(file.is_file() for part in official_splits(split) for file in wanted[part]):
                return assemble("cifar10", split, lambda part: _joined(wanted[part], read), CIFAR10)
    raise DataError(
        f"cifar10:{folder}",
        "it does not contain CIFAR-10",
        "The files are cifar-10-batches-py/data_batch_1.., cifar-10-batches-bin/data_batch_1.bin.., or "
        "cifar10_train_a.zip..",
    )


def sample(split: str) -> Arrays:
    """Open the bundled subset of CIFAR-10; see sample/README.md for its origin and terms."""
    folder = Path(__file__).parent / "sample"
    return assemble("sample", split, lambda part: strips(folder / f"{part}.zip"), CIFAR10)


def strips(file: Path) -> Part:
    """Read a zip of `*.webp`, each 32 x 32 images stacked vertically, and their `labels.npy`."""
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            check_archive(archive, file)
            contents = [archive.read(name) for name in sorted(archive.namelist()) if name.endswith(".webp")]
            labels = np.load(io.BytesIO(archive.read("labels.npy")), allow_pickle=False)
        with ThreadPoolExecutor() as pool:
            images = np.concatenate(list(pool.map(decode, contents)))
        return images.reshape(-1, 32, 32, 3), labels.astype(np.int64)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise DataError(file, f"it is not a zip of CIFAR-10 ({error})") from None


def _joined(files: list[Path], read: Any) -> Part:
    parts = [read(file) for file in files]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _binary(file: Path) -> Part:
    content = np.frombuffer(read_bytes(file, MAX_BATCH_BYTES), np.uint8)
    if not content.size or content.size % 3073:
        raise DataError(file, f"its {content.size} bytes are not a multiple of the 3,073 of a record")
    records = content.reshape(-1, 3073)
    return _from_planes(records[:, 1:]), records[:, 0].astype(np.int64)


def _pickled(file: Path) -> Part:
    with io.BytesIO(read_bytes(file, MAX_BATCH_BYTES)) as stream:
        try:
            batch = _ArraysOnly(stream, encoding="latin1").load()
            return _from_planes(batch["data"]), np.asarray(batch["labels"], np.int64)
        except (
            pickle.UnpicklingError,
            EOFError,
            KeyError,
            IndexError,
            AttributeError,
            TypeError,
            ValueError,
            MemoryError,
        ) as error:
            raise DataError(file, f"it is not a batch of CIFAR-10 ({error})") from None


def _from_planes(rows: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of plain values and numpy arrays; a pickle that names anything else could run code and is rejected."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray((0,)).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_Parts = tuple[list[dict[str, Any]], ...]  # options of the training split, test split and, as a third, "pretrain"
_TRAIN_FLAG: _Parts = ([{"train": True}], [{"train": False}])
_SPLIT_NAME: _Parts = ([{"split": "train"}], [{"split": "test"}])
_TRAIN_AND_VAL: _Parts = ([{"split": "train"}, {"split": "val"}], [{"split": "test"}])  # as the paper fits, App. B.8
_TRAINVAL: _Parts = ([{"split": "trainval"}], [{"split": "test"}])
_TORCHVISION: dict[str, _Parts] = {
    **dict.fromkeys(["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"], _TRAIN_FLAG),
    **dict.fromkeys(["Country211", "Food101", "GTSRB", "SVHN"], _SPLIT_NAME),
    **dict.fromkeys(["DTD", "Flowers102"], _TRAIN_AND_VAL),
    **dict.fromkeys(["FGVCAircraft", "OxfordIIITPet"], _TRAINVAL),
    "Imagenette": ([{"split": "train"}], [{"split": "val"}]),
    "STL10": (*_SPLIT_NAME, [{"split": "train+unlabeled"}]),
    **dict.fromkeys(["Caltech101", "Caltech256", "EuroSAT"], ([{}],)),
}


def torchvision_set(name: str, folder: Path, split: str) -> Source:
    """Open a data set of torchvision by the name of its class, with its official splits; an official validation split
    belongs to the training split.

    It is downloaded to `folder` if it is not there, since the user named it. The split "pretrain" of STL10 includes its
    unlabelled images.
    """
    if name not in _TORCHVISION:
        known = ", ".join(sorted(_TORCHVISION))
        raise DataError(f"torchvision:{name}", "there is no data set of this name", f"There are {known}")
    parts = _TORCHVISION[name]
    if len(parts) == 1:
        return select_split(_whole(name, [_obtain(name, folder, option) for option in parts[0]]), None, split)
    if split == "pretrain" and len(parts) == 3:
        chosen = parts[2]
    else:
        chosen = [option for part in official_splits(split) for option in parts[part == "test"]]
    source = _whole(name, [_obtain(name, folder, option) for option in chosen])
    return replace(source, split="all" if split == "all" else official_splits(split)[0], has_own_split=True)


def _obtain(name: str, folder: Path, option: dict[str, Any]) -> Any:
    from torchvision import datasets  # slow to import, and rarely needed

    data_set = getattr(datasets, name)
    try:
        return data_set(str(folder), **option)
    except RuntimeError:  # raised by torchvision if the files are not there
        print(f"downloading {name} to {printable(folder)}", file=sys.stderr)
    try:
        return data_set(str(folder), **option, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"torchvision:{name}", f"it could not be downloaded to {folder} ({error})") from None


def _whole(name: str, sets: list[Any]) -> Source:
    items = sets[0] if len(sets) == 1 else ConcatDataset(sets)
    annotations = [annotation_of(data_set) for data_set in sets]
    labels = [values for values, _ in annotations if values is not None]
    annotation = (np.concatenate(labels), annotations[0][1]) if len(labels) == len(sets) else (None, None)
    pixels = [_in_memory(data_set) for data_set in sets]
    paths = Paths.numbered("", len(items))
    if all(images is not None for images in pixels):
        return Arrays(name=name, paths=paths, pixels=np.concatenate(pixels), annotation=annotation)
    rows = np.arange(len(items))
    return Objects(name=name, paths=paths, items=items, rows=rows, annotation=annotation, item_labels=ItemLabels(items))


def _in_memory(items: Any) -> UInt8[np.ndarray, "n h w 3"] | None:
    """Return the images of a data set that keeps them as one array, in any of torchvision's layouts."""
    data = getattr(items, "data", None)
    if data is None:
        return None
    data = np.asarray(data)
    if data.ndim == 3:
        return np.repeat(data[..., None], 3, axis=3)
    return data if data.shape[3] == 3 else np.ascontiguousarray(data.transpose(0, 2, 3, 1))
