"""The index of a large folder, or of tar files, kept between starts in the user's cache directory.

It is used again while no folder in it (no tar file) has changed: adding, removing or renaming a file or folder changes
the time of the folder that it lies in. A folder that changed moments before it was read could change again within the
resolution of its time, so such an index is not kept.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from simclr.data.paths import Paths

LEAST = 10_000  # images from which on keeping an index is worth a file
SETTLED = 2_000_000_000  # nanoseconds; no usual file system keeps times more coarsely than in 2 seconds
_FORM = b"2"  # of the files


class Index(NamedTuple):
    """What opening a folder or tar files finds out about their n images."""

    paths: Paths
    is_test: Bool[np.ndarray, " n"] | None
    labels: Int64[np.ndarray, " n"] | None
    classes: list[str] | None
    places: Int64[np.ndarray, "n 3"] | None = None
    """of images in tar files"""


def cached(root: Path, parts: Sequence[str], build: Callable[[list[bytes]], Index]) -> Index:
    """The kept index of the sub-folders, or tar files, `parts` of `root`, or the one that `build` makes, which is then
    kept. `build` puts every folder or tar file that it reads into its argument.
    """
    file = _file(root, parts)
    if (kept := _load(file)) is not None:
        return kept
    start, folders = time.time_ns(), []
    index = build(folders)
    if len(index.paths) >= LEAST:
        with contextlib.suppress(OSError):  # no place to keep it is no reason to stop
            absolute = [os.path.abspath(folder) for folder in folders]
            times = _times(absolute)
            if times.max() < start - SETTLED:
                _save(file, index, absolute, times)
    return index


def _file(root: Path, parts: Sequence[str]) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = b"\0".join([_FORM, os.fsencode(root.resolve()), *map(os.fsencode, parts)])
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
            return Index(paths, kept.get("is_test"), labels, classes, kept.get("places"))
    except Exception:  # a folder that is gone, a file that is none of ours or was cut short: it is made anew
        return None


def _save(file: Path, index: Index, folders: list[bytes], times: Int64[np.ndarray, " k"]) -> None:
    where = Paths.of(folders)
    arrays = {
        "text": index.paths.text, "offsets": index.paths.offsets, "folders": where.text,
        "folder_offsets": where.offsets, "times": times,
    }  # fmt: skip
    if index.labels is not None:
        arrays |= {"labels": index.labels, "classes": np.array(index.classes, np.str_)}
    for name in ("is_test", "places"):
        if (found := getattr(index, name)) is not None:
            arrays[name] = found
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as stream:
        np.savez(stream, **arrays)
    os.replace(partial, file)
