"""Images in tar files with an index beside them, in a folder or at a URL: in the order of the files.

Neither names nor places are loaded. Each process maps the same pages of the index, and worker processes open it again
instead of receiving a copy.
"""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from simclr.data.paths import Paths
from simclr.data.remote import Cache, RemoteFile, download, is_url, join_url, patiently
from simclr.data.shard_index import (
    DESCRIPTION,
    FILES,
    MAX_DESCRIPTION_BYTES,
    Shard,
    ShardIndex,
    open_index,
    read_description,
)
from simclr.data.shards import Shards
from simclr.data.source import Source
from simclr.data.splits import TEST_FRACTION
from simclr.errors import DataError

STORES = {"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"}  # protocols
_MAPPED = ("paths", "places", "annotation", "starts")


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexedShards(Shards):
    """Images in tar files with an index, in the order of the files."""

    starts: Int64[np.ndarray, " shards_plus_1"]
    """first image of each tar file, and the number of images"""
    folder: Path
    """folder of the index on this machine"""
    rows: tuple[int, int]
    """first row of the index, and the one after the last"""
    index_hash: str

    @property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits computed from the rows and the index, which has the hashes of tar files."""
        return hashlib.blake2b(f"{self.index_hash} {self.rows}".encode(), digest_size=8).hexdigest()

    def part(self, start: int, stop: int) -> "IndexedShards":
        """Return the images start..stop, with their index."""
        rows = (self.rows[0] + start, self.rows[0] + stop)
        index = open_index(self.folder, read_description(self.folder / DESCRIPTION))
        return dataclasses.replace(self, rows=rows, **map_rows(index, *rows))

    def select(self, indices: Int[np.ndarray, " m"], split: str) -> Source:
        """Return the images at `indices`, in that order, as a source without an index."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Shards)}
        return Shards(**values).select(indices, split)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MAPPED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        index = open_index(state["folder"], read_description(state["folder"] / DESCRIPTION))
        self.__dict__.update(state | map_rows(index, *state["rows"]))


def map_rows(index: ShardIndex, start: int, stop: int) -> dict[str, Any]:
    """Return the fields of a source that are rows start..stop of an index."""
    labels = None if index.labels is None else index.labels[start:stop]
    return {
        "paths": Paths(index.paths.text, index.paths.offsets[start : stop + 1]),
        "places": index.places[start:stop],
        "annotation": (labels, index.classes),
        "starts": np.clip(index.starts, start, stop) - start,
    }


def open_indexed(where: str | os.PathLike, split: str) -> Source:
    """Open the images of a folder or URL with an index."""
    base = os.fspath(where)
    folder = _copy_index(base) if is_url(base) else Path(base)
    index = open_index(folder, read_description(folder / DESCRIPTION))
    n = len(index.places)
    cut = index.test or max(round(n * TEST_FRACTION), 1)  # as packed, the images are in random order
    own = cut if index.test else 0
    start, stop = {"test": (0, cut), "train": (cut, n), "pretrain": (own, n)}.get(split, (0, n))
    if start == stop:
        raise DataError(base, f"the {split} split contains no images")
    return IndexedShards(
        name=base.rstrip("/").rpartition("/")[2] if is_url(base) else Path(base).resolve().name,
        split="all" if stop - start == n else "test" if split == "test" else "train",
        has_own_split=index.test > 0,
        shards=tuple(_locate(base, shard) for shard in index.shards),
        folder=folder,
        rows=(start, stop),
        index_hash=index.fingerprint,
        **map_rows(index, start, stop),
    )


def _locate(base: str, shard: Shard) -> str | RemoteFile:
    """Return a tar file of an index; raise DataError for a local one that is missing or has another size. There may be
    tens of thousands, so they are texts: a `Path` takes longer than the check."""
    place = join_url(base, shard.name)
    if not _is_allowed(base, place):
        raise DataError(base, f"its index names {shard.name}, which is neither beside it nor in an object store")
    if is_url(place):
        return RemoteFile(place, shard.bytes, shard.sha256)
    try:
        size = os.stat(place).st_size
    except OSError as error:
        raise DataError(place, f"the index names it, but {(error.strerror or str(error)).lower()}") from None
    if size != shard.bytes:
        problem = f"it has {size:,} bytes, the index says {shard.bytes:,}"
        raise DataError(place, problem, "Copy it again, or write it with simclr pack")
    return place


def _is_allowed(base: str, place: str) -> bool:
    """Return whether an index at `base` may name a file at `place`: an index may be anybody's."""
    protocol, _, rest = place.partition("://")
    if not is_url(place):
        return not is_url(base)
    return "::" not in rest and (place.startswith(f"{base.rstrip('/')}/") or protocol in STORES)


def _copy_index(url: str) -> Path:
    """Return a folder of this machine with the index at a URL, which is copied unless it is there."""
    location, cache = join_url(url, DESCRIPTION), Cache.here().folder / "index"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        file = Path(scratch) / DESCRIPTION
        patiently(location, lambda: download(location, file, MAX_DESCRIPTION_BYTES))
        description = read_description(file)
        folder, arrays = cache / description["fingerprint"], description["files"]
        if (size := sum(arrays[name]["bytes"] for name in FILES & arrays.keys())) > Cache.here().most:
            raise DataError(url, f"its index has {size:,} bytes, more than the cache", "Raise SIMCLR_CACHE_GB")
        copies = Cache(folder, float("inf"))
        for name in FILES & arrays.keys():
            facts = arrays[name]
            copy = copies.get(RemoteFile(join_url(url, name), facts["bytes"], facts["sha256"]))
            with contextlib.suppress(FileExistsError):
                (folder / name).symlink_to(copy.name)
        os.replace(file, folder / DESCRIPTION)
    return folder
