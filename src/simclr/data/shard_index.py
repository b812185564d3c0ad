"""Index of tar files, written once beside them and memory-mapped by every process that reads them.

It consists of files named `shard-index.*`: a description in JSON, and arrays without a header, little-endian int64
where nothing else is said. Nothing in it is loaded whole, and its pages are shared by the processes of a machine.

    shard-index.json     images, classes, test images, name, size and SHA-256 of every tar file and array
    shard-index.names    the names of all images, end to end, as bytes
    shard-index.offsets  where each name begins, and the end of the last one: N + 1
    shard-index.places   tar file, first byte and length of each image: N x 3
    shard-index.labels   class of each image, -1 for none: N; absent without labels
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from simclr.data.labels import sort_classes
from simclr.data.paths import Paths
from simclr.errors import DataError
from simclr.runs.files import replacing
from simclr.runs.reading import file_hash, read_bytes

STEM = "shard-index"
DESCRIPTION = f"{STEM}.json"
KINDS = ("names", "offsets", "places", "labels")
FILES = {f"{STEM}.{kind}" for kind in KINDS}
FORMAT = 1
MAX_DESCRIPTION_BYTES = 256 << 20  # of a million tar files
_CHUNK = 1 << 20  # labels renumbered together


class Shard(NamedTuple):
    """A tar file of an index."""

    name: str
    """path or URL, relative to the index"""
    bytes: int
    sha256: str
    images: int


class ShardIndex(NamedTuple):
    """An index that is open."""

    shards: list[Shard]
    paths: Paths
    places: Int64[np.ndarray, "n 3"]
    labels: Int64[np.ndarray, " n"] | None
    classes: list[str] | None
    test: int
    """number of images, the first ones, that are the test split; 0 for none"""
    fingerprint: str

    @property
    def starts(self) -> Int64[np.ndarray, " shards_plus_1"]:
        """Return the first image of each tar file, and the number of images."""
        return np.concatenate([[0], np.cumsum([shard.images for shard in self.shards], dtype=np.int64)])


class IndexWriter:
    """Writer of an index into a folder, one tar file after another; it keeps none of their images in memory."""

    def __init__(self, folder: Path) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._codes: dict[str, int] = {}
        self._end = 0
        self._files = {kind: open(folder / f"{STEM}.{kind}", "wb") for kind in KINDS}  # noqa: SIM115
        self._write("offsets", np.zeros(1, np.int64))

    def add(self, shard: Shard, names: Sequence[bytes], spans: Int64[np.ndarray, "m 2"], texts: Sequence[str]) -> None:
        """Add the images of a tar file: their names, first bytes and lengths, and their classes, "" for none."""
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        self._write("offsets", self._end + np.cumsum(lengths))
        self._end += int(lengths.sum())
        self._files["names"].write(b"".join(names))
        self._write("places", np.insert(spans, 0, len(self.shards), axis=1))
        codes = (self._codes.setdefault(text, len(self._codes)) if text else -1 for text in texts)
        self._write("labels", np.fromiter(codes, np.int64, len(names)))
        self.shards.append(shard._replace(images=len(names)))

    def close(self, test: int = 0) -> None:
        """Write what was added to the disk, and last the description, without which there is no index."""
        self.release()
        classes = self._sort_labels() if self._codes else None
        if classes is None:
            (self._folder / f"{STEM}.labels").unlink()
        files = [path for kind in self._files if (path := self._folder / f"{STEM}.{kind}").exists()]
        content = {
            "format": FORMAT,
            "images": sum(shard.images for shard in self.shards),
            "test": test,
            "classes": classes,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files},
            "shards": [list(shard) for shard in self.shards],
        }
        with replacing(self._folder / DESCRIPTION) as file:
            file.write(json.dumps(content).encode())

    def release(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _write(self, kind: str, values: Int64[np.ndarray, "..."]) -> None:
        self._files[kind].write(np.ascontiguousarray(values, "<i8").data)

    def _sort_labels(self) -> list[str]:
        """Number the classes in their order, as those of other data sets are."""
        classes = sort_classes(set(self._codes))
        number = {text: k for k, text in enumerate(classes)}
        numbers = np.array([*(number[text] for text in self._codes), -1], np.int64)  # the last one is for no class
        labels = np.memmap(self._folder / f"{STEM}.labels", "<i8", "r+")
        for start in range(0, len(labels), _CHUNK):
            part = slice(start, start + _CHUNK)
            labels[part] = numbers[labels[part]]
        labels.flush()
        return classes


def has_index(folder: Path) -> bool:
    """Return whether there is an index in a folder."""
    return (folder / DESCRIPTION).is_file()


def read_description(file: Path) -> dict[str, Any]:
    """Return the description of an index; raise DataError if it is none."""
    content = read_bytes(file, MAX_DESCRIPTION_BYTES)
    try:
        description = json.loads(content)
        valid = description["format"] == FORMAT and description["images"] > 0
        description["shards"] = [Shard(*shard) for shard in description["shards"]]
        valid &= sum(shard.images for shard in description["shards"]) == description["images"]
        valid &= isinstance(description["files"], dict) and 0 <= description["test"] < description["images"]
        files = [(name, facts["bytes"], facts["sha256"]) for name, facts in description["files"].items()]
        valid &= all(_names_a_file(*shard[:3]) and shard.images >= 0 for shard in description["shards"])
        valid &= all(_names_a_file(*file) for file in files)
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise DataError(file, "it is not an index of tar files", "Write it again with simclr pack")
    return {**description, "fingerprint": hashlib.blake2b(content, digest_size=8).hexdigest()}


def _names_a_file(name: Any, size: Any, sha256: Any) -> bool:
    """Return whether these can be facts of a file; copies are named by the hash, so it must be one."""
    is_hash = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
    return is_hash and isinstance(name, str) and type(size) is int and size >= 0


def open_index(folder: Path, description: dict[str, Any]) -> ShardIndex:
    """Map the arrays of an index into memory; raise DataError if one of them is missing or has another size."""
    n, labelled = description["images"], description["classes"] is not None
    shapes = {"names": (-1,), "offsets": (n + 1,), "places": (n, 3), **({"labels": (n,)} if labelled else {})}
    arrays = {}
    for kind, shape in shapes.items():
        file = folder / f"{STEM}.{kind}"
        try:
            if file.stat().st_size != description["files"][file.name]["bytes"]:
                raise ValueError("its size is not the one in the description")
            # labels can be written to, privately, since torch warns of arrays that cannot
            mode = "c" if kind == "labels" else "r"
            mapped = np.memmap(file, np.uint8 if kind == "names" else "<i8", mode)
            arrays[kind] = mapped.view(np.ndarray).reshape(shape)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(file, f"it is not complete ({error})", "Write the index again with simclr pack") from None
    paths = Paths(arrays["names"], arrays["offsets"])
    rest = (arrays.get("labels"), description["classes"], description["test"], description["fingerprint"])
    return ShardIndex(description["shards"], paths, arrays["places"], *rest)
