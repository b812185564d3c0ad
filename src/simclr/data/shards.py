"""Images in tar files: a few large files instead of many small ones, which are slow to list, copy and open.

A member is an image by its extension; its name in the archive is its path. `KEY.cls` beside `KEY.jpg` is its class, as
in WebDataset; without such members, folders are classes and splits as in a folder of images. Only uncompressed tar
files are read: at random positions, in any order, without unpacking.
"""

import io
import os
import re
import shutil
import tarfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from simclr.data.paths import is_image
from simclr.data.source import Source
from simclr.errors import DataError, UnreadableImage
from simclr.runs.files import sync_folder
from simclr.runs.reading import open_regular

MAX_DIGITS = 9  # of a number in the name of a tar file
MAX_CLASS_BYTES = 64 << 10  # of the class of an image

STAGE, MARKER = ".packing", ".incomplete"  # in a folder of tar files: those being written, and a set being moved
Places = Int64[np.ndarray, "n 3"]
"""shard, first byte and length of each image"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards(Source):
    """Images in tar files."""

    shards: tuple[Path, ...]
    places: Places

    def stored(self, i: int | np.integer) -> bytes:
        shard, start, length = self.places[i].tolist()
        try:
            return _read(self.shards[shard], start, length)
        except OSError as error:
            reason = f"{self.shards[shard]}: {(error.strerror or str(error)).lower()}"
            raise UnreadableImage(self.paths[i], reason) from error

    def _content(self, i: np.integer) -> bytes:
        return b"%d" % self.places[i, 2]

    def _selected(self, indices: Int[np.ndarray, " m"]) -> dict[str, np.ndarray]:
        return {"places": self.places[indices]}


def shard_files(text: str) -> list[Path]:
    """Return the paths of FILE.tar, or of several tar files as in name-{000..099}.tar; all must exist."""
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", text, re.DOTALL)
    if match is None:
        names = [text]
    else:
        before, first, last, after = match.groups()
        if max(len(first), len(last)) > MAX_DIGITS:
            raise DataError(text, f"a number of its range has more than {MAX_DIGITS} digits")
        names = (f"{before}{k:0{len(first)}}{after}" for k in range(int(first), int(last) + 1))
        if int(first) > int(last):
            raise DataError(text, f"the range {first}..{last} is empty", "Write the smaller number first")
    files = []
    for file in (Path(name).expanduser() for name in names):  # until the first that does not exist
        if not file.is_file():
            problem = "it is not a regular file" if file.exists() else "it does not exist"
            raise DataError(file, problem + (f" but is in the range of {text}" if match else ""))
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
                if length > MAX_CLASS_BYTES:
                    raise DataError(file, f"{os.fsdecode(name)} has {length:,} bytes, which is not the name of a class")
                classes[k, stem] = _read(file, start, length).decode(errors="replace").strip()
    where = np.array(places, np.int64).reshape(-1, 3)
    shards = where[:, 0].tolist()
    stems = (name.rpartition(b".")[0] for name in names)
    texts = [_class(classes, k, stem) for k, stem in zip(shards, stems, strict=True)] if classes else None
    paths = names
    if len(set(names)) < len(names):  # each shard may number its images from 0
        paths = [os.fsencode(files[k].stem) + b"/" + name for k, name in zip(shards, names, strict=True)]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    paths, names = [paths[i] for i in order], [names[i] for i in order]
    return Members(paths, names, where[order], texts and [texts[i] for i in order])


def _class(classes: dict[tuple[int, bytes], str], shard: int, stem: bytes) -> str:
    """Return the content of `a/b.cls` for `a/b.jpg`, and for `a/b.left.jpg` if there is no `a/b.left.cls`."""
    folder, slash, base = stem.rpartition(b"/")
    return classes.get((shard, stem), classes.get((shard, folder + slash + base.partition(b".")[0]), ""))


def _members(file: Path) -> Iterator[tuple[bytes, int, int]]:
    try:
        with open_regular(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            end = os.fstat(stream.fileno()).st_size
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
                        yield encoded, member.offset_data, member.size
                archive.members = []  # type: ignore[attr-defined]  # otherwise all of them would be kept in memory
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, IndexError, KeyError) as error:
        raise DataError(file, f"it is not a complete, uncompressed tar file ({error})") from None


def _read(file: Path, start: int, length: int) -> bytes:
    with open_regular(file) as stream:
        stream.seek(start)
        return stream.read(length)


class TarWriter:
    """Writer of tar files of about `size` bytes in a folder: 000000.tar and so on.

    They are written in a hidden folder. Once all of them are complete and on the disk they are moved, while a marker
    says that the set is incomplete, so no part of a set passes as the whole. After an error nothing is left of them.
    """

    def __init__(self, folder: Path, size: int):
        self.count = 0
        self.beside: dict[str, Callable[[Path], None]] = {}
        """other files of the set by name, and what writes them; they are absent if there is nothing to write"""
        self._folder, self._size, self._stage = folder, size, folder / STAGE
        self._archive: tarfile.TarFile | None = None

    def __enter__(self) -> "TarWriter":
        shutil.rmtree(self._stage, ignore_errors=True)  # of a writer that was killed
        self._stage.mkdir(parents=True)
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            self._close()
            if kind is None:
                self._move()
        finally:
            shutil.rmtree(self._stage, ignore_errors=True)

    def write(self, members: dict[str, bytes]) -> None:
        """Write files that belong together, given by their names."""
        if self._archive is None:
            self._file = open(self._stage / f"{self.count:06d}.tar", "wb")  # noqa: SIM115
            self._archive = tarfile.TarFile(fileobj=self._file, mode="w")
            self.count += 1
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            self._archive.addfile(member, io.BytesIO(content))
        if self._archive.offset >= self._size:
            self._close()

    def _close(self) -> None:
        if self._archive is None:
            return
        with self._file:
            self._archive.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        self._archive = None

    def _move(self) -> None:
        """Put the set in place of what is there of an earlier one."""
        for name, write in self.beside.items():
            write(self._stage / name)
        sync_folder(self._stage)
        marker = self._folder / MARKER
        with open(marker, "wb") as file:
            os.fsync(file.fileno())
        sync_folder(self._folder)
        names = sorted(path.name for path in self._stage.iterdir())
        for path in self._folder.iterdir():
            is_of_a_set = path.name in self.beside or re.fullmatch(r"\d{6}\.tar(\.partial)?", path.name)
            if is_of_a_set and path.name not in names:
                path.unlink()
        for name in names:
            os.replace(self._stage / name, self._folder / name)
        self._stage.rmdir()
        sync_folder(self._folder)
        marker.unlink()
        sync_folder(self._folder)
