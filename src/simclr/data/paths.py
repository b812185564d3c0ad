"""Compact lists of file names, and the listing of image files in folders.

Names are kept as one byte array and its offsets, which all workers share. A Python list of a million strings is
copied page by page into every forked worker as its reference counts are touched; two arrays are not.
"""

import codecs
import hashlib
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8

from simclr.errors import DataError
from simclr.runs.reading import read_bytes

MAX_TEXT_BYTES = 4 << 30  # of a list or table; one of a hundred million paths
READS_HEIC = importlib.util.find_spec("pillow_heif") is not None  # the extra `heic`
READS_DICOM = importlib.util.find_spec("pydicom") is not None  # the extra `bands`
EXTENSIONS = frozenset(
    b"jpg jpeg jpe jfif png webp bmp dib gif tif tiff ppm pgm pbm pnm jp2 avif tga".split()
    + b"heic heif hif".split() * READS_HEIC
    + b"dcm dicom".split() * READS_DICOM
)
SYSTEM_FOLDERS = frozenset(
    (b"@eadir", b"@__thumb", b"@recycle", b"#recycle", b"__macosx", b"$recycle.bin", b"system volume information")
)
"""names, in lower case, of folders that systems make beside images; others begin with a dot and are hidden"""
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


@dataclass(frozen=True, eq=False)
class Paths(Sequence[str]):
    """Immutable sequence of N file names: `text` holds them, name i in offsets[i]:offsets[i+1], one after another."""

    text: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " n_plus_1"]

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "Paths":
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(names), np.uint8), offsets)

    @classmethod
    def numbered(cls, prefix: str, n: int) -> "Paths":
        """Return names for n images that have none: prefix0, prefix1, ..."""
        return cls.of([b"%s%d" % (os.fsencode(prefix), i) for i in range(n)])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int | np.integer) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} out of range for {len(self)} images")
        return os.fsdecode(self.text[self.offsets[i] : self.offsets[i + 1]].tobytes())

    def encoded(self) -> Iterator[bytes]:
        """Yield all names as bytes, in order."""
        first = int(self.offsets[0])
        text = self.text[first : int(self.offsets[-1])].tobytes()
        start = 0
        for stop in (self.offsets[1:] - first).tolist():
            yield text[start:stop]
            start = stop

    def lengths(self, indices: Int[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Return the number of bytes of the names at `indices`."""
        return self.offsets[1:][indices] - self.offsets[:-1][indices]

    def select(self, indices: Int[np.ndarray, " m"]) -> "Paths":
        """Return the names at `indices`, in that order."""
        starts, lengths = self.offsets[:-1][indices], self.lengths(indices)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Paths(self.text[np.repeat(starts, lengths) + within], offsets)

    @cached_property
    def hashes(self) -> Float64[np.ndarray, " n"]:
        """A number in [0, 1) for each name, a function of nothing but the name."""
        words = (int.from_bytes(hashlib.blake2b(name, digest_size=6).digest()) for name in self.encoded())
        return np.fromiter(words, np.float64, len(self)) * 2.0**-48


def read_lines(file: Path) -> list[bytes]:
    """Return the lines of a list of file names, without blanks at their ends; empty lines and lines that begin with #
    are left out."""
    content = read_bytes(file, MAX_TEXT_BYTES).removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(file, "it is UTF-16 text", "Save it as UTF-8")
    lines = (line.strip() for line in content.splitlines())
    return [line for line in lines if line and not line.startswith(b"#")]


@dataclass
class Listing:
    """Image files below a folder, and what was left out."""

    names: list[bytes] = field(default_factory=list)
    """relative to the folder, sorted"""
    skipped: dict[str, str] = field(default_factory=dict)
    """folders and links that were not entered, with the reason"""
    ignored: Counter[str] = field(default_factory=Counter)
    """number of other files by extension, "" for none"""


def list_images(root: Path, parts: Iterable[str] = ("",), visited: list[bytes] | None = None) -> Listing:
    """List all image files under the sub-folders `parts` of `root`.

    A file is an image by its extension, in any case, or, if it has none, by its first bytes. Symbolic links are
    followed unless they lead to a folder that they lie in; a broken link to an image is listed and found unreadable
    later. Hidden names, folders of thumbnails and of deleted files, and run folders are skipped. Every folder that is
    read is added to `visited`.
    """
    listing = Listing()
    for part in parts:
        top = os.fsencode(root / part)
        pending = [(top, os.fsencode(part) + b"/" if part else b"", frozenset({_identity(top)}))]
        while pending:
            folder, prefix, above = pending.pop()
            try:
                with os.scandir(folder) as iterator:
                    entries = list(iterator)
            except OSError as error:
                if folder == top:
                    raise DataError(root / part, f"the folder cannot be read ({_reason(error)})") from None
                listing.skipped[os.fsdecode(prefix)] = _reason(error)
                continue
            if prefix and any(entry.name == b"recipe.yaml" for entry in entries):
                listing.skipped[os.fsdecode(prefix)] = "folder of a run"
                continue
            if visited is not None:
                visited.append(folder)
            for entry in entries:
                _sort_entry(entry, prefix, above, pending, listing)
    listing.names.sort()
    return listing


def _sort_entry(entry: os.DirEntry, prefix: bytes, above: frozenset, pending: list, listing: Listing) -> None:
    """Add an entry of a folder to the folders to be read, or to the listing."""
    name = entry.name
    if name.startswith(b"."):
        return
    try:
        if entry.is_dir():
            identity = _identity(entry.path)
            if name.lower() in SYSTEM_FOLDERS:
                listing.skipped[os.fsdecode(prefix + name) + "/"] = "folder of thumbnails, deleted or system files"
            elif identity in above:
                listing.skipped[os.fsdecode(prefix + name)] = "link to a folder that it lies in"
            else:
                pending.append((entry.path, prefix + name + b"/", above | {identity}))
            return
        is_file = entry.is_file()
    except OSError as error:  # a link to itself
        is_file = False
        if not is_image(name):
            listing.skipped[os.fsdecode(prefix + name)] = _reason(error)
            return
    if is_image(name) and (is_file or entry.is_symlink()):
        listing.names.append(prefix + name)
    elif is_file:
        extension = os.path.splitext(name)[1].lower()
        if not extension and _has_image_signature(entry.path):
            listing.names.append(prefix + name)
        else:
            listing.ignored[os.fsdecode(extension)] += 1


def is_image(name: bytes) -> bool:
    """Return whether a file name has the extension of an image format that can be read."""
    return name.rpartition(b".")[2].lower() in EXTENSIONS


def _has_image_signature(path: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
