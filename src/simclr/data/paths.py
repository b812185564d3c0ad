"""Lists of file names that stay small: one byte array and its offsets, shared by all workers.

A Python list of a million strings is copied page by page into every forked worker as its reference counts
are touched; two arrays are not.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8

EXTENSIONS = frozenset(b"jpg jpeg jpe jfif png webp bmp dib gif tif tiff ppm pgm pbm pnm jp2 avif tga".split())


@dataclass(frozen=True, eq=False)
class Paths:
    """An immutable sequence of N file names: `text` holds them end to end, name i in offsets[i]:offsets[i+1]."""

    text: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " n_plus_1"]

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "Paths":
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(names), np.uint8), offsets)

    @classmethod
    def numbered(cls, prefix: str, n: int) -> "Paths":
        """Names for n images that have none: prefix0, prefix1, ..."""
        return cls.of([b"%s%d" % (os.fsencode(prefix), i) for i in range(n)])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int | np.integer) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} out of range for {len(self)} images")
        return os.fsdecode(self.text[self.offsets[i] : self.offsets[i + 1]].tobytes())

    def encoded(self) -> Iterator[bytes]:
        """All names as bytes, in order."""
        text = self.text.tobytes()
        start = 0
        for stop in self.offsets[1:].tolist():
            yield text[start:stop]
            start = stop

    def select(self, indices: Int[np.ndarray, " m"]) -> "Paths":
        """The names at `indices`, in that order."""
        starts, lengths = self.offsets[:-1][indices], np.diff(self.offsets)[indices]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Paths(self.text[np.repeat(starts, lengths) + within], offsets)

    def hashes(self) -> Float64[np.ndarray, " n"]:
        """A number in [0, 1) for each name, a function of nothing but the name."""
        words = (int.from_bytes(hashlib.blake2b(name, digest_size=6).digest()) for name in self.encoded())
        return np.fromiter(words, np.float64, len(self)) * 2.0**-48


def find_images(root: Path, parts: Iterable[str] = ("",), visited: list[bytes] | None = None) -> list[bytes]:
    """Names, relative to `root` and sorted, of all image files under its sub-folders `parts`.

    A file counts by its extension, in any case. Symbolic links are followed, unless they lead to a folder
    that they lie in; a broken link to an image is listed and found unreadable later. Names that start
    with a dot are hidden: they and what lies below them are left out. Every folder that is read is added to `visited`.
    """
    found: list[bytes] = []
    for part in parts:
        folder = os.fsencode(root / part)
        pending = [(folder, os.fsencode(part) + b"/" if part else b"", frozenset({_identity(folder)}))]
        while pending:
            folder, prefix, above = pending.pop()
            if visited is not None:
                visited.append(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(b"."):
                        continue
                    if entry.is_dir():
                        identity = _identity(entry.path)
                        if identity not in above:
                            pending.append((entry.path, prefix + name + b"/", above | {identity}))
                    elif is_image(name) and (entry.is_file() or entry.is_symlink()):
                        found.append(prefix + name)
    found.sort()
    return found


def is_image(name: bytes) -> bool:
    """Whether a file name has the extension of a picture."""
    return name.rpartition(b".")[2].lower() in EXTENSIONS


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
