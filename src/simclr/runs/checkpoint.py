"""Checkpoints: states of training with a hash of their content and the identity of their run."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from simclr.errors import RunError
from simclr.runs.files import sync_folder
from simclr.runs.storage import UNSUPPORTED, is_bucket

NAMES = ("partial.pt", "last.pt", "previous.pt")  # in the order in which they are written
_HASH, _RUN = "sha256", "run"


class Checkpoint(NamedTuple):
    """A checkpoint that was read, and the problems of those that could not be."""

    name: str
    state: dict[str, Any]
    damaged: dict[str, str]


class Checkpoints:
    """The folder of a run's checkpoints.

    At every moment a complete one is on disk. `last.pt` becomes `previous.pt` only if this process has written or read
    it, so a damaged file never takes the place of a good one. On storage that cannot rename at once, such as a mounted
    bucket, the two are written in turns and each is read back; the newest is the whole one of the highest step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._newest = ""  # name of the newest whole one that this process has written or read
        self._renames: bool | None = None

    def write(self, state: dict[str, Any], run: dict[str, Any]) -> None:
        """Replace the last checkpoint; `run` identifies the run it belongs to."""
        self.folder.mkdir(exist_ok=True)
        partial, last, previous = (self.folder / name for name in NAMES)
        content = {**state, _RUN: run}
        content[_HASH] = content_hash(content)
        if self._renames is None:
            self._renames = not is_bucket(self.folder)
        if self._renames:
            _save(content, partial)
            try:
                if self._newest == last.name and last.exists():
                    os.replace(last, previous)
                    self._newest = previous.name
                os.replace(partial, last)
                self._newest = last.name
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._renames = False
        if not self._renames:
            target = previous if self._newest == last.name else last
            _save(content, target)
            if not _is_whole(target, content[_HASH]):
                raise OSError(f"{target} was not stored as it was written. Older checkpoints are kept")
            self._newest = target.name
            partial.unlink(missing_ok=True)
        sync_folder(self.folder)

    def read(self, run: dict[str, Any]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, on the CPU; None if there is none.

        Raises RunError if none can be read, or if it belongs to another run: its settings differ from those of `run`.
        """
        damaged: dict[str, str] = {}
        candidates = []
        for name in NAMES:
            path = self.folder / name
            if not path.is_file():
                continue
            try:
                state = _read(path, required=name == "partial.pt")
            except Exception as error:  # torch reads pickles: half a file can raise nearly anything
                damaged[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".rstrip(": ")
                continue
            candidates.append((state["step"], name, state))
        damaged.pop("partial.pt", None)  # a checkpoint that was being written is expected to be half a file
        if not candidates:
            if damaged:
                problem = f"no checkpoint can be read ({', '.join(f'{n}: {e}' for n, e in damaged.items())})"
                raise RunError(self.folder, problem, "Start over with --fresh", tuple(damaged))
            return None
        _, name, state = max(candidates, key=lambda candidate: candidate[0])
        saved = state.pop(_RUN, {})
        if different := [key for key, value in saved.items() if key in run and run[key] != value]:
            problem = f"belongs to another run, with other {', '.join(different)}"
            raise RunError(self.folder / name, problem, "Start over with --fresh", tuple(different))
        self._newest = name
        return Checkpoint(name, state, damaged)


class _Writer:
    """File that remembers whether writing failed: torch turns the OSError of a full disk into a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.failed = file, False

    def write(self, content: bytes | memoryview) -> int:
        try:
            return self.file.write(content)
        except OSError:
            self.failed = True
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; after an error nothing is left of it."""
    try:
        with open(path, "wb") as file:
            writer = _Writer(file)
            torch.save(content, writer)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not writer.failed:  # such as torch's, that a decoding process died
            raise
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(f"{path} cannot be written ({free:,.1f} MB free). Older checkpoints are kept") from error


def _is_whole(path: Path, expected: str) -> bool:
    """Return whether the content of a checkpoint has a hash."""
    try:
        return content_hash(_read(path, required=True)) == expected
    except Exception:  # torch reads pickles: half a file can raise nearly anything
        return False


def _read(path: Path, required: bool) -> dict[str, Any]:
    """Return the content of a checkpoint; raise ValueError if it is not what was written. Files of version 0.1 have no
    hash."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    expected = state.pop(_HASH, None)
    if (required and expected is None) or (expected is not None and content_hash(state) != expected):
        raise ValueError("content differs from its hash")
    return state


def content_hash(value: Any) -> str:
    """Return a hash of nested dicts, lists, tensors and plain values."""
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b"")
    elif isinstance(value, dict):
        digest.update(f"dict{len(value)}".encode())
        for key, inner in value.items():
            digest.update(repr(key).encode())
            _update(digest, inner)
    elif isinstance(value, list | tuple):
        digest.update(f"list{len(value)}".encode())
        for inner in value:
            _update(digest, inner)
    else:
        digest.update(f"{type(value).__name__}{value!r}".encode())
