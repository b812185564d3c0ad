"""Index of a large folder, or of tar files, cached in the user's cache directory.

It is used again while no folder in it (no tar file) has changed: adding, removing or renaming a file or folder changes
the modification time of the folder that contains it. A folder that changed moments before it was read could change
again within the resolution of its time, so such an index is not cached.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from simclr.data.paths import READS_HEIC, Paths
from simclr.data.source import LeftOut

MIN_IMAGES = 10_000  # below that, caching an index saves less time than the file costs
SETTLED = 2_000_000_000  # nanoseconds; no usual file system has a time resolution above 2 seconds
_FORMAT = b"3" + b"h" * READS_HEIC  # of the files


class Index(NamedTuple):
    """Names, splits and labels of the n images of a folder or of tar files."""

    paths: Paths
    is_test: Bool[np.ndarray, " n"] | None
    labels: Int64[np.ndarray, " n"] | None
    classes: list[str] | None
    places: Int64[np.ndarray, "n 3"] | None = None
    """of images in tar files"""
    groups: Int64[np.ndarray, " n"] | None = None
    left_out: LeftOut = LeftOut()


def cached(root: Path, parts: Sequence[str], build: Callable[[list[bytes]], Index]) -> Index:
    """Return the cached index of `root`, or the one that `build` returns, which is then cached.

    `parts` distinguish indices of the same root. `build` adds every folder or tar file that it reads to its argument.
    """
    file = _file(root, parts)
    if (kept := _load(file)) is not None:
        return kept
    start, folders = time.time_ns(), []
    index = build(folders)
    if len(index.paths) >= MIN_IMAGES:
        with contextlib.suppress(OSError):  # the cache is not needed
            absolute = [os.path.abspath(folder) for folder in folders]
            times = _times(absolute)
            if times.max() < start - SETTLED:
                _save(file, index, absolute, times)
    return index


def _file(root: Path, parts: Sequence[str]) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = b"\0".join([_FORMAT, os.fsencode(root.resolve()), *map(os.fsencode, parts)])
    return base / "simclr" / "index" / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.npz"


def _times(folders: Sequence[bytes]) -> Int64[np.ndarray, " k"]:
    return np.array([os.stat(folder).st_mtime_ns for folder in folders], np.int64)


def _load(file: Path) -> Index | None:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            folders = list(Paths(kept["folders"], kept["folder_offsets"]).encoded())
            if (_times(folders) != kept["times"]).any():
                return None
            labels, classes = kept.get("labels"), kept.get("classes")
            classes = None if classes is None else classes.tolist()
            paths = Paths(kept["text"], kept["offsets"])
            left_out = LeftOut(*json.loads(str(kept["left_out"])))
            return Index(paths, kept.get("is_test"), labels, classes, kept.get("places"), kept.get("groups"), left_out)
    except Exception:  # a folder is gone, or the file is foreign or truncated: the index is built again
        return None


def _save(file: Path, index: Index, folders: list[bytes], times: Int64[np.ndarray, " k"]) -> None:
    where = Paths.of(folders)
    arrays = {
        "text": index.paths.text,
        "offsets": index.paths.offsets,
        "folders": where.text,
        "folder_offsets": where.offsets,
        "times": times,
        "left_out": np.array(json.dumps(index.left_out)),
    }
    if index.labels is not None:
        arrays |= {"labels": index.labels, "classes": np.array(index.classes, np.str_)}
    for name in ("is_test", "places", "groups"):
        if (values := getattr(index, name)) is not None:
            arrays[name] = values
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as stream:
        np.savez(stream, **arrays)
    os.replace(partial, file)
