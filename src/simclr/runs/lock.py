"""Lock of a run folder, held by the process that writes it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from simclr.errors import RunError
from simclr.runs.storage import UNSUPPORTED

NAME = ".lock"
HEARTBEAT, STALE = 10.0, 60.0  # seconds between signs of life of a lease, and after which it has lapsed
_WITHOUT_LOCKS = {*UNSUPPORTED, errno.ENOLCK, errno.EINVAL}
LENGTH = 400  # bytes, more than a host name takes
SETTLE = 0.5  # seconds after which a lease that another process took at the same time is seen
_held: set[Path] = set()


class RunLock:
    """Exclusive right to write a folder.

    The lock is a record lock of the kernel, which ends with the process however it ends and which worker processes do
    not inherit. On storage without locks, such as a mounted bucket, it is a lease: a file with host, process and a time
    that is renewed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = None
        self._is_held = False
        self._ended = threading.Event()

    def acquire(self) -> None:
        """Take the lock; raise RunError that names the holder if another process has it."""
        key = self.path.resolve()
        if key in _held:  # record locks do not keep a process from itself
            raise self._refusal({"host": socket.gethostname(), "process": os.getpid()})
        if not self._lock():
            self._lease()
        _held.add(key)
        self._is_held = True
        self._write()

    def release(self) -> None:
        """Give the lock up; the file is left empty, since deleting it would race with another process."""
        if not self._is_held:
            return
        self._ended.set()
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        self._close()
        self._is_held = False
        _held.discard(self.path.resolve())

    def __del__(self) -> None:  # a run that nobody holds any more is not being written
        self.release()

    def _lock(self) -> bool:
        """Take the kernel's lock; return False where it has none. Raises RunError that names the holder."""
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            was_open = self._file is not None
            self._close()
            if error.errno in _WITHOUT_LOCKS:
                return False
            if was_open:
                raise self._refusal(_read(self.path)) from None
            raise

    def _lease(self) -> None:
        """Take a lease unless its holder is alive, and see that no other process has taken it at the same time."""
        if self._is_alive(holder := _read(self.path)):
            raise self._refusal(holder)
        self._write()
        time.sleep(SETTLE)
        if (holder := _read(self.path)).get("process") != os.getpid() or holder.get("host") != socket.gethostname():
            raise self._refusal(holder)
        self._ended = threading.Event()
        threading.Thread(target=self._renew, args=(self._ended,), daemon=True).start()

    def _write(self) -> None:
        """Write who holds the lock, in place and at the same length, so that no reader meets a part of it."""
        holder = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        data = json.dumps(holder).ljust(LENGTH).encode()
        if self._file is not None:
            os.pwrite(self._file, data, 0)
            return
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(file, data, 0)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            self.path.write_bytes(data)  # in a mounted bucket, where others see a file once it is closed

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                self._write()

    def _is_alive(self, holder: dict) -> bool:
        """Return whether the holder of a lease has given a sign of life lately."""
        if holder.get("host") == socket.gethostname() and holder.get("process"):
            return Path(f"/proc/{holder['process']}").exists() and time.time() - holder.get("time", 0) < STALE
        return time.time() - holder.get("time", 0) < STALE

    def _refusal(self, holder: dict) -> RunError:
        who = f"process {holder['process']} on {holder['host']}" if "process" in holder else "another process"
        return RunError(self.path.parent, f"{who} is writing this run", "Wait for it to end, or choose another --out")


def read_holder(folder: Path) -> dict:
    """Return host and process of the holder of a folder's lock, and the time at which it took or renewed it; empty if
    the lock is free. A holder that was killed is still named, see `has_ended`."""
    return _read(folder / NAME)


def has_ended(holder: dict) -> bool:
    """Return whether the process of a holder is known to have ended; a process of another machine never is."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        pass
    return False


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
