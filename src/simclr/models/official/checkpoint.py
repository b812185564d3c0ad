"""Reader of TensorFlow checkpoints (the tensor-bundle format) without TensorFlow.

No small, maintained reader exists on PyPI, and TensorFlow itself is a heavy dependency for a format that has been
frozen since 2016: an index file, which is a LevelDB table of names to protocol buffers, and data files with the
raw tensors. All data are checked against their stored checksums; RunError is raised for anything else.
Formats: tensorflow/core/util/tensor_bundle, tensorflow/core/lib/io/format.cc, trackable_object_graph.proto.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simclr.errors import RunError
from simclr.models.official.crc32c import masked_crc32c
from simclr.runs.reading import open_regular, read_bytes

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # after each block of the index: one byte of compression type, four of checksum
_STRING = 7
_DTYPES = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64, 10: np.bool_,
    17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
MAX_INDEX_BYTES = 4 << 20  # of an index; that of the largest official network has 0.2 MB
MAX_KEY_BYTES = 4096  # of the name of a value; official ones have 200
MAX_TEXT_BYTES = 16 << 20  # of a string, such as the object graph, which has 1 MB
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class Entry(NamedTuple):
    """Type, shape and position of a tensor."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class Node(NamedTuple):
    """Object of an object-based checkpoint."""

    children: dict[str, int]
    """number of the node of each child, by name"""
    variable: str | None
    """key of the stored value, if the object is a variable"""


class Bundle:
    """Checkpoint with `entries` by key and `read(key)` for a value. `prefix` is its path without `.index`."""

    def __init__(self, prefix: Path):
        self.prefix = prefix
        index = Path(f"{prefix}.index")
        content = read_bytes(index, MAX_INDEX_BYTES, RunError)
        table = _parse(index, lambda: dict(_read_table(content)))
        if b"" not in table:
            raise RunError(index, "is not the index of a checkpoint (it has no header)")
        header = _parse(index, lambda: _fields(table.pop(b"")))
        if header.get(2, [0])[0] != 0:
            raise RunError(index, "is big-endian, which is not supported")
        shards = header.get(1, [0])[0]
        self.entries = _parse(index, lambda: {key.decode(): _entry(value) for key, value in table.items()})
        self._verified: set[str] = set()
        self._data = [_map(Path(f"{prefix}.data-{i:05d}-of-{shards:05d}")) for i in range(shards)]
        for key, entry in self.entries.items():  # before a network of these shapes is built
            self._check_size(key, entry)

    def read(self, key: str) -> np.ndarray:
        """Return the value of a numeric tensor, read-only."""
        entry = self.entries[key]
        if entry.dtype not in _DTYPES:
            raise RunError(self.prefix, f"{key} has TensorFlow's data type {entry.dtype}, which is not supported")
        dtype = np.dtype(_DTYPES[entry.dtype])
        raw = self._checked(key, entry)
        return raw.view(dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(entry.shape)

    def verify(self) -> None:
        """Check the checksum of every tensor that has not been read yet."""
        for key in self.entries.keys() - self._verified:
            entry = self.entries[key]
            self._string(key, entry) if entry.dtype == _STRING else self._checked(key, entry)

    def object_graph(self) -> list[Node]:
        """Return the objects of an object-based checkpoint, the root first; empty for a name-based one."""
        if OBJECT_GRAPH not in self.entries:
            return []
        raw = self._string(OBJECT_GRAPH, self.entries[OBJECT_GRAPH])
        return _parse(self.prefix, lambda: [_node(node) for node in _fields(raw).get(1, [])])

    def _check_size(self, key: str, entry: Entry) -> None:
        """Raise RunError unless a value is in the data files and has the size of its shape."""
        self._raw(key, entry)
        if entry.dtype == _STRING and entry.size > MAX_TEXT_BYTES:
            raise RunError(self.prefix, f"{key} has {entry.size:,} bytes; at most {MAX_TEXT_BYTES:,} are read")
        if entry.dtype in _DTYPES and entry.size != np.dtype(_DTYPES[entry.dtype]).itemsize * prod(entry.shape):
            raise RunError(self.prefix, f"{key} has {entry.size} bytes, which do not match its shape {entry.shape}")

    def _raw(self, key: str, entry: Entry) -> np.ndarray:
        if not 0 <= entry.shard < len(self._data) or entry.offset + entry.size > len(self._data[entry.shard]):
            raise RunError(self.prefix, f"{key} is outside the data files; they are truncated or of another checkpoint")
        return self._data[entry.shard][entry.offset : entry.offset + entry.size]

    def _checked(self, key: str, entry: Entry) -> np.ndarray:
        raw = self._raw(key, entry)
        if masked_crc32c(raw) != entry.checksum:
            raise RunError(self.prefix, f"{key} does not match its checksum; the data file is damaged")
        self._verified.add(key)
        return raw

    def _string(self, key: str, entry: Entry) -> bytes:
        """Return a scalar string, stored as its length, the checksum of the length as four bytes, and the text."""
        raw = self._raw(key, entry).tobytes()
        length, start = _parse(self.prefix, lambda: _varint(raw, 0))
        text, stored = raw[start + 4 :], raw[start : start + 4]
        length_bytes = struct.pack("<I", length & 0xFFFFFFFF)
        mixed = np.frombuffer(length_bytes + stored + text, np.uint8)
        if (
            entry.shape != ()
            or len(text) != length
            or struct.pack("<I", masked_crc32c(mixed[:4])) != stored
            or masked_crc32c(mixed) != entry.checksum
        ):
            raise RunError(self.prefix, f"{key} does not match its checksum; the data file is damaged")
        return text


def find_prefix(path: str | Path) -> Path:
    """Return the prefix of the checkpoint at `path`: a prefix, an `.index` file, or a folder.

    A folder is a SavedModel or hub module (`variables/variables.index`), its `variables` folder, one with a
    `checkpoint` file that names the latest, or one with a single index.
    """
    path = Path(path)
    if path.suffix == ".index" and path.is_file():
        return path.with_suffix("")
    if Path(f"{path}.index").is_file():
        return path
    if not path.is_dir():
        raise RunError(path, f"is neither a folder nor the prefix of {path.name}.index")
    for candidate in (path / "variables" / "variables", path / "variables"):
        if Path(f"{candidate}.index").is_file():
            return candidate
    state = path / "checkpoint"
    if state.is_file():
        for line in read_bytes(state, MAX_INDEX_BYTES, RunError).decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "model_checkpoint_path":
                latest = path / Path(value.strip().strip('"')).name
                if not Path(f"{latest}.index").is_file():
                    raise RunError(state, f"names {latest.name}, which is not in the folder")
                return latest
    indices = sorted(path.glob("*.index"))
    if len(indices) != 1:
        raise RunError(path, f"contains {len(indices)} checkpoints", "Name one by its path without .index")
    return indices[0].with_suffix("")


def _parse(path: Path, parse):
    """Run a parser of bytes from `path`; whatever it raises means that they are not of the format."""
    try:
        return parse()
    except (OSError, LookupError, AttributeError, struct.error, OverflowError, TypeError, ValueError) as error:
        raise RunError(path, f"is damaged or not a TensorFlow checkpoint: {error}") from None


def _map(path: Path) -> np.ndarray:
    try:
        with open_regular(path, RunError) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise RunError(path, f"cannot be read: {error.strerror}") from None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length integer at position `at`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("an integer is longer than ten bytes")


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a LevelDB table, whose blocks must fill the file."""
    if len(data) < _FOOTER:
        raise ValueError("the file is shorter than a table's footer")
    footer = data[-_FOOTER:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("the file does not end as a table does")
    meta_offset, at = _varint(footer, 0)
    meta_size, at = _varint(footer, at)
    index_offset, at = _varint(footer, at)
    index_size, at = _varint(footer, at)
    if any(footer[at:-8]):
        raise ValueError("the footer's padding is not zero")
    blocks = []
    for _, handle in _read_block(data, index_offset, index_size):
        offset, position = _varint(handle, 0)
        blocks.append((offset, _varint(handle, position)[0]))
    end = 0
    for offset, size in [*blocks, (meta_offset, meta_size), (index_offset, index_size)]:
        if offset != end:
            raise ValueError("its blocks do not follow one another")
        end = offset + size + _TRAILER
    if end != len(data) - _FOOTER:
        raise ValueError("its blocks do not fill the file")
    for _ in _read_block(data, meta_offset, meta_size):
        raise ValueError("it has a metadata block, which checkpoints do not have")
    for offset, size in blocks:
        yield from _read_block(data, offset, size)


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + _TRAILER]
    compression, checksum = struct.unpack("<BI", trailer)
    if masked_crc32c(np.frombuffer(block + trailer[:1], np.uint8)) != checksum:
        raise ValueError(f"the block at byte {offset} does not match its checksum")
    if compression != 0:
        raise ValueError("it is compressed, which checkpoints are not")
    restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = size - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        if len(key) > MAX_KEY_BYTES:
            raise ValueError(f"a key has {len(key):,} bytes")
        at += fresh
        yield key, block[at : at + length]
        at += length


def _fields(message: bytes) -> dict[int, list]:
    """Return the fields of a protocol buffer by number: integers, or bytes for nested messages and strings."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind == 5:
            value, at = struct.unpack_from("<I", message, at)[0], at + 4
        elif kind == 1:
            value, at = struct.unpack_from("<Q", message, at)[0], at + 8
        else:
            raise ValueError(f"a message has a field of unknown kind {kind}")
        if at > len(message):
            raise ValueError("a message ends inside a field")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _entry(message: bytes) -> Entry:
    """Return the entry of a BundleEntryProto."""
    fields = _fields(message)
    if 7 in fields:
        raise ValueError("a variable is stored in slices, which is not supported")
    dimensions = _fields(fields.get(2, [b""])[0]).get(2, [])
    shape = tuple(_fields(dimension).get(1, [0])[0] for dimension in dimensions)
    dtype, shard, offset, size, checksum = (fields.get(number, [0])[0] for number in (1, 3, 4, 5, 6))
    return Entry(dtype, shape, shard, offset, size, checksum)


def _node(message: bytes) -> Node:
    """Return the node of a TrackableObject of a TrackableObjectGraph."""
    fields = _fields(message)
    children = {}
    for reference in map(_fields, fields.get(1, [])):
        children[reference.get(2, [b""])[0].decode()] = reference.get(1, [0])[0]
    variable = None
    for attribute in map(_fields, fields.get(2, [])):
        if attribute.get(1, [b""])[0] == b"VARIABLE_VALUE":
            variable = attribute[3][0].decode()
    return Node(children, variable)
