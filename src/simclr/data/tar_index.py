"""Index of tar files that exist, in a folder or at a URL, which stay as they are."""

import hashlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simclr.data.labels import label_text
from simclr.data.paths import is_image
from simclr.data.remote import filesystem, is_url, join_url, list_files, patiently, upload
from simclr.data.shard_index import DESCRIPTION, FILES, IndexWriter, Shard
from simclr.data.shards import check_class, class_beside, expand_range, named_tar_errors, regular_members, shard_files
from simclr.errors import DataError
from simclr.runs.reading import open_regular

_PIECE = 8 << 20  # bytes read at a time


def list_tar_files(data: str) -> list[str]:
    """Return the paths or URLs of the tar files that a folder, FILE.tar or NAME-{000..099}.tar means."""
    if not is_url(data):
        folder = Path(data).expanduser()
        files = sorted(folder.glob("*.tar")) if folder.is_dir() else shard_files(data)
        names = [str(file.absolute()) for file in files]
    elif data.endswith(".tar"):
        names = list(expand_range(data)[0])
    else:
        names = list_files(data, "*.tar")
    if not names:
        raise DataError(data, "there are no tar files in it")
    return names


def index_tar_files(files: Sequence[str], out: str, advance: Callable[[], None]) -> int:
    """Write the index of tar files to a folder or a URL and return the number of images. Each file is read once, from
    start to end, and one at a time is held in memory: its names and places."""
    base = out if is_url(out) else os.path.abspath(out)
    with tempfile.TemporaryDirectory(dir=None if is_url(out) else out) as scratch:
        writer = IndexWriter(Path(scratch))
        try:
            for file in files:
                _add(writer, file, base)
                advance()
            images = sum(shard.images for shard in writer.shards)
            if not images:
                raise DataError(files[0], "there are no image files in it" + (" or in the others" if files[1:] else ""))
            writer.close()
        finally:
            writer.release()
        for name in (*sorted(FILES), DESCRIPTION):  # the description last: without it there is no index
            if (path := Path(scratch) / name).exists():
                upload(path, join_url(out, name)) if is_url(out) else os.replace(path, Path(out) / name)
    return images


def _add(writer: IndexWriter, file: str, base: str) -> None:
    names, spans, stems, classes = [], [], [], {}
    key = os.fsencode(file.rpartition("/")[2].rpartition(".")[0])
    with _open(file) as stream, named_tar_errors(file):
        reader = _Hashed(stream, file)
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for name, member in regular_members(file, archive, sys.maxsize):
                stem, _, extension = name.rpartition(b".")
                if is_image(name):
                    names.append(key + b"/" + name)
                    spans.append((member.offset_data, member.size))
                    stems.append(stem)
                elif extension == b"cls":
                    check_class(file, name, member.size)
                    classes[0, stem] = archive.extractfile(member).read().decode(errors="replace")
        reader.finish()
    if any(start + length > reader.bytes for start, length in spans):
        raise DataError(file, "it is truncated or damaged")
    inside = file.startswith(base.rstrip("/") + "/")
    place = file[len(base.rstrip("/")) + 1 :] if inside else file
    texts = [label_text(class_beside(classes, 0, stem)) for stem in stems]
    shard = Shard(place, reader.bytes, reader.sha256.hexdigest(), len(names))
    writer.add(shard, names, np.array(spans, np.int64).reshape(-1, 2), texts)


def _open(file: str) -> Any:
    if not is_url(file):
        return open_regular(file)
    fs, path = filesystem(file)
    return patiently(file, lambda: fs.open(path, "rb", cache_type="readahead", block_size=_PIECE))


class _Hashed:
    """Stream that hashes what is read; a piece of a remote file is read again after an error that may pass."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name, self.bytes, self.sha256 = stream, name, 0, hashlib.sha256()

    def read(self, size: int = _PIECE) -> bytes:
        """Return the next bytes."""
        read = partial(self._stream.read, size)
        content = patiently(self._name, read) if is_url(self._name) else read()
        self.bytes += len(content)
        self.sha256.update(content)
        return content

    def finish(self) -> None:
        """Read the rest."""
        while self.read():
            pass
