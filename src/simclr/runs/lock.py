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

NAME = ".lock"
HEARTBEAT, STALE = 10.0, 60.0  # seconds between signs of life of a lease, and after which it has lapsed
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_held: set[Path] = set()


class RunLock:
    """Exclusive right to write a folder.

    The lock is a record lock of the kernel, which ends with the process however it ends and which worker processes do
    not inherit. On file systems without locks it is a lease: a file with host, process and a time that is renewed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = None
        self._ended = threading.Event()

    def acquire(self) -> None:
        """Take the lock; raise RunError that names the holder if another process has it."""
        key = self.path.resolve()
        if key in _held:  # record locks do not keep a process from itself
            raise self._refusal({"host": socket.gethostname(), "process": os.getpid()})
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(self.path)
            if error.errno not in _UNSUPPORTED:
                os.close(file)
                raise self._refusal(holder) from None
            if self._is_alive(holder):
                os.close(file)
                raise self._refusal(holder) from None
            threading.Thread(target=self._renew, daemon=True).start()
        self._file = file
        _held.add(key)
        self._write()

    def release(self) -> None:
        """Give the lock up; the file is left empty, since deleting it would race with another process."""
        if self._file is None:
            return
        self._ended.set()
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        os.close(self._file)
        self._file = None
        _held.discard(self.path.resolve())

    def __del__(self) -> None:  # a run that nobody holds any more is not being written
        self.release()

    def _write(self) -> None:
        content = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        data = json.dumps(content).encode()
        os.pwrite(self._file, data, 0)
        os.ftruncate(self._file, len(data))

    def _renew(self) -> None:
        while not self._ended.wait(HEARTBEAT):
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
