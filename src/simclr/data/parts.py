"""Embeddings of a data set in a folder of arrays, written in parts by any number of processes.

    embeddings.json   what they were computed from, and the classes; it is written last
    features.npy      (N, D) float32 or float16, a row for each readable image in the order of the data set
    indices.npy       (N,) int64, number of each image in the data set
    names.npy         uint8, the names of the images end to end, and
    offsets.npy       (N + 1,) int64, where each begins
    labels.npy        (N,) int64, -1 for none; absent without labels
    test.npy          (N,) bool, images of the test split

A part is a range of images. Its rows are written to their place in the file of features, then a file that says so; a
process that is started again continues with the parts that are missing. Nothing is held whole in memory.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from simclr.data.paths import Paths
from simclr.data.remote import locked
from simclr.data.source import Source
from simclr.errors import DataError, SettingError
from simclr.runs.files import replacing, write_atomically

ARRAYS = ("features", "indices", "test", "offsets", "names", "labels")
DESCRIPTION, PLAN, WORK = "embeddings.json", "plan.json", ".embedding"
_ROWS = 1 << 16  # copied together


class Parts(NamedTuple):
    """Folder of embeddings that are being computed."""

    folder: Path
    source: Source
    width: int
    dtype: str
    size: int
    """number of images of a part"""

    @property
    def _work(self) -> Path:
        return self.folder / WORK

    def begin(self, origin: Mapping[str, str], overwrite: bool = False) -> None:
        """Create the folder, or continue in it; raise SettingError if other embeddings are in it, unless they may be
        overwritten."""
        plan = {**origin, "fingerprint": self.source.fingerprint, "images": len(self.source), "features": self.width,
                "dtype": self.dtype, "part_size": self.size}  # fmt: skip
        file = self._work / PLAN
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            if overwrite:
                (self.folder / DESCRIPTION).unlink(missing_ok=True)
                if file.exists() and json.loads(file.read_text(encoding="utf-8")) != plan:
                    shutil.rmtree(self._work)
            if not file.exists() and not (self.folder / DESCRIPTION).exists():
                others = [name for name in ARRAYS if (self.folder / f"{name}.npy").exists()]
                if others and not overwrite:
                    remedy = "Choose another --out or --overwrite"
                    raise SettingError("out", f"a folder without {others[0]}.npy", str(self.folder), remedy)
                self._work.mkdir(exist_ok=True)
                write_atomically(file, json.dumps(plan))
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != plan:
            remedy = "These are incomplete; choose another --out or --overwrite"
            raise SettingError("out", "a folder without embeddings of other images", str(self.folder), remedy)

    def missing(self, rank: int = 0, world: int = 1) -> list[int]:
        """Return the parts that a process of several has still to compute."""
        if (self.folder / DESCRIPTION).exists():
            return []
        count = -(-len(self.source) // self.size)
        return [k for k in range(rank, count, world) if not self._record(k).exists()]

    def images(self, part: int) -> Source:
        """Return the images of a part."""
        return self.source.part(part * self.size, min((part + 1) * self.size, len(self.source)))

    def write(self, part: int, features: Float[np.ndarray, "m d"], rows: Int64[np.ndarray, " m"], bad: dict) -> None:
        """Write the features of the readable images of a part, its images `rows`, and the reasons of the others."""
        first = part * self.size
        count = min(self.size, len(self.source) - first)
        if len(rows) == count:
            block = np.ascontiguousarray(features, self.dtype)
        else:
            block = np.zeros((count, self.width), self.dtype)
            block[rows] = features.reshape(len(rows), self.width)
        header = _header(self.dtype, len(self.source), self.width)
        file = os.open(self._work / "features.npy", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(file, header, 0)
            content, place = memoryview(block).cast("B"), len(header) + first * block[:1].nbytes
            while content:
                written = os.pwrite(file, content, place)
                content, place = content[written:], place + written
            os.fsync(file)
        finally:
            os.close(file)
        absent = np.setdiff1d(np.arange(count), rows) + first
        write_atomically(self._record(part), json.dumps({"absent": absent.tolist(), "bad": bad}))

    def complete(
        self, origin: Mapping[str, str], is_test: Callable[[], Bool[np.ndarray, " n"]]
    ) -> dict[str, str] | None:
        """Write the other arrays if all parts are there, and return the reasons of the unreadable images."""
        with locked(self.folder / ".lock"):
            if self.missing() or not self._work.exists():  # another process has completed them
                return None
            return self._complete(origin, is_test)

    def _complete(self, origin: Mapping[str, str], is_test: Callable[[], Bool[np.ndarray, " n"]]) -> dict[str, str]:
        records = [json.loads(self._record(k).read_text()) for k in range(-(-len(self.source) // self.size))]
        absent = np.array([row for record in records for row in record["absent"]], np.int64)
        bad = {name: reason for record in records for name, reason in record["bad"].items()}
        n = len(self.source) - len(absent)
        if not n:
            raise DataError(self.source.name, "no image can be read", "simclr scan lists the reasons")
        blocks = lambda: _kept(len(self.source), absent)
        test, labels, paths = is_test(), self.source.labels, self.source.paths
        computed = self._work / "features.npy"  # moved already if this was interrupted near its end
        features = np.load(computed if computed.exists() else self.folder / "features.npy", mmap_mode="r")
        writes: dict[str, tuple[Any, tuple, Iterator[np.ndarray]]] = {
            "indices": (np.int64, (n,), blocks()),
            "test": (bool, (n,), (test[rows] for rows in blocks())),
            "offsets": (np.int64, (n + 1,), _offsets(paths, blocks())),
            "names": (np.uint8, (sum(int(paths.lengths(rows).sum()) for rows in blocks()),),
                      (paths.select(rows).text for rows in blocks())),
        }  # fmt: skip
        if labels is not None:
            writes["labels"] = (np.int64, (n,), (labels[rows] for rows in blocks()))
        if len(absent):
            writes["features"] = (self.dtype, (n, self.width), (features[rows] for rows in blocks()))
        for name, (dtype, shape, values) in writes.items():
            with replacing(self.folder / f"{name}.npy") as file:
                file.write(_header(dtype, *shape))
                for value in values:
                    file.write(np.ascontiguousarray(value, dtype).data)
        if not len(absent) and computed.exists():
            os.replace(computed, self.folder / "features.npy")
        content = {**origin, "images": n, "bad": len(bad), "classes": self.source.classes}
        write_atomically(self.folder / DESCRIPTION, json.dumps(content))
        shutil.rmtree(self._work)
        return bad

    def _record(self, part: int) -> Path:
        return self._work / f"{part:06d}.json"


def is_own(name: str) -> bool:
    """Return whether a file in a folder is, by its name, one of embeddings, complete or not."""
    return name in (DESCRIPTION, WORK, *(f"{array}.npy" for array in ARRAYS))


def _header(dtype: Any, *shape: int) -> bytes:
    """Return the header of an .npy file."""
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _kept(n: int, absent: Int64[np.ndarray, " m"]) -> Iterator[Int64[np.ndarray, " b"]]:
    """Yield the rows of the readable images, some at a time."""
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(start + _ROWS, n))
        yield rows[~np.isin(rows, absent)]


def _offsets(paths: Paths, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    end = np.zeros(1, np.int64)
    yield end
    for rows in blocks:
        yield (ends := end[-1] + np.cumsum(paths.lengths(rows)))
        end = ends if len(ends) else end
