"""Writes TensorFlow checkpoints, so that tests can read networks nobody trained."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from simclr.models.official.crc32c import masked_crc32c

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}


def crc(data: bytes) -> int:
    return masked_crc32c(np.frombuffer(data, np.uint8))


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(items: Iterable[tuple[bytes, bytes]], interval: int) -> bytes:
    """A table's block: keys share prefixes with their predecessor except at restarts."""
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(items):
        shared = 0
        if i % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    out += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)) + b"\0"
    return out + struct.pack("<I", crc(out))


def graph(paths: Mapping[str, str]) -> bytes:
    """TrackableObjectGraph with a variable at each path, stored under the given key."""
    nodes: list[tuple[dict[str, int], str | None]] = [({}, None)]
    for path, key in paths.items():
        at = 0
        for name in path.split("/"):
            if name not in nodes[at][0]:
                nodes[at][0][name] = len(nodes)
                nodes.append(({}, None))
            at = nodes[at][0][name]
        nodes[at] = (nodes[at][0], key)
    message = b""
    for children, key in nodes:
        node = b"".join(field(1, field(1, child) + field(2, name.encode())) for name, child in children.items())
        if key is not None:
            node += field(2, field(1, b"VARIABLE_VALUE") + field(2, b"name") + field(3, key.encode()))
        message += field(1, node)
    return message


def write(prefix: Path, values: Mapping[str, np.ndarray | bytes], shards: int = 1, block_items: int = 16) -> None:
    """Tensors (or one string, as bytes) under their keys, spread over the shards in turn."""
    data, table = [b""] * shards, {b"": field(1, shards) + field(3, field(1, 1))}
    for i, (key, value) in enumerate(sorted(values.items())):
        if isinstance(value, bytes):
            length = struct.pack("<I", len(value))
            raw = varint(len(value)) + struct.pack("<I", crc(length)) + value
            checksum, dtype, shape = crc(length + struct.pack("<I", crc(length)) + value), 7, ()
        else:
            raw = value.tobytes()
            checksum, dtype, shape = crc(raw), DTYPES[value.dtype.name], value.shape
        entry = field(1, dtype) + field(2, b"".join(field(2, field(1, side)) for side in shape))
        entry += field(3, i % shards) + field(4, len(data[i % shards])) + field(5, len(raw))
        table[key.encode()] = entry + varint(6 << 3 | 5) + struct.pack("<I", checksum)
        data[i % shards] += raw
    for i, content in enumerate(data):
        Path(f"{prefix}.data-{i:05d}-of-{shards:05d}").write_bytes(content)

    index, handles, items = b"", [], sorted(table.items())
    for start in range(0, len(items), block_items):
        part = items[start : start + block_items]
        content = block(part, 4)
        handles.append((part[-1][0], varint(len(index)) + varint(len(content) - 5)))
        index += content
    footer = b""
    for content in (block([], 1), block(handles, 1)):
        footer += varint(len(index)) + varint(len(content) - 5)
        index += content
    Path(f"{prefix}.index").write_bytes(index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
