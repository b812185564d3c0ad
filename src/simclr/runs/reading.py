"""Reading of files that a user names: regular files only, and no more bytes than their kind can need.

A pipe or a device would block or never end, and a small file can stand for any amount of memory. Every kind of file has
its bound, which is compared with the size of the file before memory is taken.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from simclr.errors import DataError

MAX_YAML_BYTES = 256 << 10  # bundled recipes have 3 kB; the parser reads about 100 kB a second
MAX_YAML_VALUES = 10_000  # with the values that aliases repeat: a few lines of them can stand for billions
MAX_YAML_DEPTH = 50
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}

Refusal = Callable[[str, str], Exception]
"""class of the error for a path and a problem: DataError, RunError or UnreadableImage"""


def open_regular(path: str | os.PathLike, error: Refusal = DataError) -> BinaryIO:
    """Open a regular file for reading; raise `error` for a pipe, a device or a socket, without waiting for it."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise error(os.fspath(path), f"it is {_KINDS.get(kind, 'a special file')}, not a regular file")
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which has no effect on regular files


def read_bytes(path: str | os.PathLike, most: int, error: Refusal = DataError) -> bytes:
    """Return the content of a regular file of at most `most` bytes."""
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise error(os.fspath(path), f"it has {size:,} bytes; at most {most:,} are read from a file of this kind")
        return file.read(size)


def file_hash(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: Path, error: Refusal = DataError) -> Any:
    """Return the content of a YAML file of plain values."""
    content = read_bytes(path, MAX_YAML_BYTES, error)
    try:
        text = content.decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _count(root, {}, 0) > MAX_YAML_VALUES:
            raise error(os.fspath(path), f"it stands for more than {MAX_YAML_VALUES:,} values")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as reason:
        if isinstance(reason, DataError) or type(reason) is error:
            raise
        text = " ".join(str(reason).split())
        raise error(os.fspath(path), f"it is not valid YAML ({text or 'nested too deeply'})") from None


def _count(node: yaml.Node, counts: dict[int, int], depth: int) -> int:
    """Return the number of values that a node stands for, with those that its aliases repeat."""
    if id(node) in counts:
        return counts[id(node)]
    if depth > MAX_YAML_DEPTH:
        raise ValueError(f"it is nested more than {MAX_YAML_DEPTH} levels deep, or contains itself")
    children = node.value if isinstance(node.value, list) else []
    total = 1
    for child in children:
        for inner in child if isinstance(child, tuple) else (child,):
            total += _count(inner, counts, depth + 1)
    counts[id(node)] = total
    return total
