"""Images in tar files: a few large files instead of many small ones, which are slow to list, copy and open.

A member is an image by its extension; its name in the archive is its path. `KEY.cls` beside `KEY.jpg` is its class, as
in WebDataset; without such members, folders are classes and splits as in a folder of images. Only uncompressed tar
files are read: at random positions, in any order, without unpacking.
"""

import contextlib
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from simclr.data.formats import MAX_FILE_BYTES
from simclr.data.paths import is_image
from simclr.data.remote import RemoteFile
from simclr.data.source import Source
from simclr.errors import DataError, UnreadableImage
from simclr.runs.reading import open_regular

MAX_DIGITS = 9  # of a number in the name of a tar file
MAX_CLASS_BYTES = 64 << 10  # of the class of an image

MARKER = ".incomplete"  # in a folder of tar files while a set is being moved there
Places = Int64[np.ndarray, "n 3"]
"""shard, first byte and length of each image"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards(Source):
    """Images in tar files."""

    shards: tuple[str | Path | RemoteFile, ...]
    places: Places

    def stored(self, i: int | np.integer) -> bytes:
        shard, start, length = self.places[i].tolist()
        if not 0 <= shard < len(self.shards) or start < 0 or not 0 <= length <= MAX_FILE_BYTES:
            problem = f"its index has {self.paths[i]} at byte {start} of tar file {shard}, with {length} bytes"
            raise DataError(self.name, problem, "Write the index again with simclr pack")
        file = self.shards[shard]
        if isinstance(file, RemoteFile):
            return _read_copy(file, start, length)
        try:
            return _read(file, start, length)
        except OSError as error:
            raise UnreadableImage(self.paths[i], f"{file}: {(error.strerror or str(error)).lower()}") from error

    def _content(self, i: np.integer) -> bytes:
        return b"%d" % self.places[i, 2]

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        return {"places": self.places[indices]}


def expand_range(text: str) -> tuple[Iterable[str], bool]:
    """Return the names that NAME-{000..099}.tar stands for, and whether it is such a range."""
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", text, re.DOTALL)
    if match is None:
        return [text], False
    before, first, last, after = match.groups()
    if max(len(first), len(last)) > MAX_DIGITS:
        raise DataError(text, f"a number of its range has more than {MAX_DIGITS} digits")
    if int(first) > int(last):
        raise DataError(text, f"the range {first}..{last} is empty", "Write the smaller number first")
    return (f"{before}{k:0{len(first)}}{after}" for k in range(int(first), int(last) + 1)), True


def shard_files(text: str) -> list[Path]:
    """Return the paths of FILE.tar, or of several tar files as in name-{000..099}.tar; all must exist."""
    names, is_range = expand_range(text)
    files = []
    for file in (Path(name).expanduser() for name in names):  # until the first that does not exist
        if not file.is_file():
            problem = "it is not a regular file" if file.exists() else "it does not exist"
            raise DataError(file, problem + (f" but is in the range of {text}" if is_range else ""))
        files.append(file)
    return files


def require_complete(folder: Path) -> None:
    """Raise DataError if the tar files of a folder are a part of a set, or of two."""
    if (folder / MARKER).exists():
        raise DataError(folder, "its tar files are incomplete, since simclr pack was interrupted", "Repeat the command")


class Members(NamedTuple):
    """The images in tar files, sorted by `paths`."""

    paths: list[bytes]
    """their names; if several files contain the same names, preceded by the name of the file"""
    names: list[bytes]
    """names in the archives"""
    places: Places
    texts: list[str] | None
    """classes as written in .cls members, "" for none; None if there are no such members"""


def find_members(files: list[Path]) -> Members:
    """List all images in tar files except hidden ones."""
    names, places = [], array("q")  # numbers as such, since there may be millions
    classes: dict[tuple[int, bytes], str] = {}
    for k, file in enumerate(files):
        for name, start, length in _members(file):
            stem, _, extension = name.rpartition(b".")
            if is_image(name):
                names.append(name)
                places.extend((k, start, length))
            elif extension == b"cls":
                check_class(file, name, length)
                classes[k, stem] = _read(file, start, length).decode(errors="replace").strip()
    where = np.array(places, np.int64).reshape(-1, 3)
    shards = where[:, 0].tolist()
    stems = (name.rpartition(b".")[0] for name in names)
    texts = [class_beside(classes, k, stem) for k, stem in zip(shards, stems, strict=True)] if classes else None
    paths = names
    if len(set(names)) < len(names):  # each shard may number its images from 0
        paths = [os.fsencode(files[k].stem) + b"/" + name for k, name in zip(shards, names, strict=True)]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    paths, names = [paths[i] for i in order], [names[i] for i in order]
    return Members(paths, names, where[order], texts and [texts[i] for i in order])


def check_class(file: str | Path, name: bytes, length: int) -> None:
    """Raise DataError for a .cls member that is too long for the name of a class."""
    if length > MAX_CLASS_BYTES:
        raise DataError(file, f"{os.fsdecode(name)} has {length:,} bytes, which is not the name of a class")


def class_beside(classes: dict[tuple[int, bytes], str], shard: int, stem: bytes) -> str:
    """Return the content of `a/b.cls` for `a/b.jpg`, and for `a/b.left.jpg` if there is no `a/b.left.cls`."""
    folder, slash, base = stem.rpartition(b"/")
    return classes.get((shard, stem), classes.get((shard, folder + slash + base.partition(b".")[0]), ""))


def _members(file: Path) -> Iterator[tuple[bytes, int, int]]:
    with named_tar_errors(file), open_regular(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for name, member in regular_members(file, archive, os.fstat(stream.fileno()).st_size):
            yield name, member.offset_data, member.size


def regular_members(file: str | Path, archive: tarfile.TarFile, end: int) -> Iterator[tuple[bytes, tarfile.TarInfo]]:
    """Yield the files in an archive that are not hidden, with their names; DataError for a link to an image, and for a
    file that goes beyond `end`."""
    for member in archive:
        if member.size < 0 or (member.isreg() and member.offset_data + member.size > end):
            raise DataError(file, f"{member.name} is outside the file, which is truncated or damaged")
        name = member.name.removeprefix("./")
        encoded = name.encode(errors="surrogateescape")
        if not any(part.startswith(".") for part in name.split("/")):
            if (member.islnk() or member.issym()) and is_image(encoded):
                remedy = "Write the file with tar --dereference --hard-dereference"
                raise DataError(file, f"{name} is a link", remedy)
            if member.isreg() and not member.issparse():
                yield encoded, member
        archive.members = []  # type: ignore[attr-defined]  # otherwise all of them would be kept in memory


@contextlib.contextmanager
def named_tar_errors(file: str | Path) -> Iterator[None]:
    """Raise what a file that is no tar file makes tarfile raise as DataError."""
    try:
        yield
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, IndexError, KeyError) as error:
        raise DataError(file, f"it is not a complete, uncompressed tar file ({error})") from None


def _read(file: str | Path, start: int, length: int) -> bytes:
    with open_regular(file) as stream:
        stream.seek(start)
        return stream.read(length)


def _read_copy(file: RemoteFile, start: int, length: int) -> bytes:
    while True:
        with contextlib.suppress(FileNotFoundError):  # deleted for others just now: the cache is too small
            return _read(file.local(), start, length)
