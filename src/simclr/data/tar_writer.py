"""Writing of sets of tar files, in a folder or to a URL, with or without an index."""

import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simclr.data import remote
from simclr.data.shard_index import DESCRIPTION, FILES, STEM, IndexWriter, Shard
from simclr.data.shards import MARKER
from simclr.runs.files import sync_folder
from simclr.runs.reading import file_hash

STAGE = ".packing"  # folder of the tar files that are being written
_OF_A_SET = re.compile(rf"\d{{6}}\.tar(\.partial)?|{STEM}\.\w+")


def is_own(name: str) -> bool:
    """Return whether a file in a folder is, by its name, one of a set of tar files, complete or not."""
    return name in (STAGE, MARKER) or _OF_A_SET.fullmatch(name) is not None


class TarWriter:
    """Writer of tar files of about `size` bytes in a folder: 000000.tar and so on.

    They are written in a hidden folder. Once all of them are complete and on the disk they are moved, while a marker
    says that the set is incomplete, so no part of a set passes as the whole. After an error nothing is left of them.
    With a `url`, each is moved there as soon as it is complete, and last the index, without which there is no set;
    after an error those that were moved remain, and the same command with --overwrite replaces them.
    """

    def __init__(self, folder: Path, size: int, *, index: bool = False, url: str | None = None):
        """`index`: whether to write an index; required for a `url`."""
        self.count = 0
        self.test = 0
        """number of images, the first ones, that are the test split"""
        self.beside: dict[str, Callable[[Path], None]] = {}
        """other files of the set by name, and what writes them; they are absent if there is nothing to write"""
        self._folder, self._size, self._stage = folder, size, folder / STAGE
        self._has_index, self._url = index, url
        self._index: IndexWriter | None = None
        self._archive: tarfile.TarFile | None = None
        self._rows: list[tuple[bytes, tuple[int, int], str]] = []

    def __enter__(self) -> "TarWriter":
        shutil.rmtree(self._stage, ignore_errors=True)  # of a writer that was killed
        self._stage.mkdir(parents=True)
        if self._url:
            remote.remove(remote.join_url(self._url, DESCRIPTION))
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            if kind is None:
                self._close()
                self._finish()
        finally:
            if self._archive is not None:  # after an error
                self._file.close()
            if self._index:
                self._index.release()
            shutil.rmtree(self._stage, ignore_errors=True)

    def write(self, members: dict[str, bytes], label: str = "") -> None:
        """Write files that belong together, given by their names: an image and perhaps its class, which is `label`."""
        if self._archive is None:
            self._file = open(self._stage / f"{self.count:06d}.tar", "wb")  # noqa: SIM115
            self._archive = tarfile.TarFile(fileobj=self._file, mode="w")
            self.count += 1
        for k, (name, content) in enumerate(members.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            self._archive.addfile(member, io.BytesIO(content))
            if self._has_index and k == 0:
                start = self._archive.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                self._rows.append((name.encode(errors="surrogateescape"), (start, len(content)), label))
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
        path = Path(self._file.name)
        if self._has_index:
            self._index = self._index or IndexWriter(self._stage)
            names, spans, labels = zip(*self._rows, strict=True)
            shard = Shard(path.name, path.stat().st_size, file_hash(path), len(names))
            self._index.add(shard, names, np.array(spans, np.int64), labels)
            self._rows = []
        if self._url:
            self._move_to_url(path)

    def _finish(self) -> None:
        for name, write in self.beside.items():
            write(self._stage / name)
        if self._index:
            self._index.close(self.test)
        if not self._url:
            return self._move()
        for name in (*self.beside, *sorted(FILES), DESCRIPTION):
            if (self._stage / name).exists():
                self._move_to_url(self._stage / name)

    def _move_to_url(self, path: Path) -> None:
        remote.upload(path, remote.join_url(self._url, path.name))
        path.unlink()

    def _move(self) -> None:
        """Put the set in place of what is there of an earlier one."""
        sync_folder(self._stage)
        marker = self._folder / MARKER
        with open(marker, "wb") as file:
            os.fsync(file.fileno())
        sync_folder(self._folder)
        names = sorted(path.name for path in self._stage.iterdir())
        for path in self._folder.iterdir():
            if (path.name in self.beside or _OF_A_SET.fullmatch(path.name)) and path.name not in names:
                path.unlink()
        for name in names:
            os.replace(self._stage / name, self._folder / name)
        self._stage.rmdir()
        sync_folder(self._folder)
        marker.unlink()
        sync_folder(self._folder)
