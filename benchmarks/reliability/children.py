"""Child processes that kill themselves before a file operation: what the attack programs of this folder share."""

import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parents[2] / "results" / "reliability"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
FAILED = 3  # exit code of a function that raised an exception


class Ended(NamedTuple):
    """End of a child process."""

    code: int
    """exit code, negative for a signal"""
    value: Any
    """returned value; for a failure, its text; None for a kill"""
    operations: list[str]
    """file operations, in order; the last one is that before which the process was killed"""
    seconds: float


class Operations:
    """Count of the file operations below a folder, and a kill before one of them."""

    def __init__(self, root: Path, journal: int, kill_before: int | None) -> None:
        self.root, self.journal, self.kill_before, self.count = str(root), journal, kill_before, 0

    def install(self) -> None:
        """Watch this process to its end."""
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            self.meet("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        os.fsync = watched
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and isinstance(path, str | bytes | os.PathLike):
                self.meet("open", os.fsdecode(path))
        elif event in EVENTS:
            path = arguments[0]
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            relative = not os.path.isabs(os.fsdecode(path))  # below a folder that is being deleted
            self.meet(event, f"{self.root}/{os.fsdecode(path)}" if relative else os.fsdecode(path))

    def meet(self, operation: str, path: str) -> None:
        """Count an operation, and end the process if it is the one."""
        if not path.startswith(self.root):
            return
        os.write(self.journal, f"{operation} {path.removeprefix(self.root).lstrip('/')}\n".encode())
        self.count += 1
        if self.count == self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    function: Callable[[], Any], root: Path, *, kill_before: int | None = None, kill_after: float | None = None,
    victim: Callable[[int], int | None] = lambda child: child, patience: float = 120,
) -> Ended:  # fmt: skip
    """Call a function in a child process; kill it before its file operation number `kill_before`, or kill `victim` of
    it after `kill_after` seconds. A child that lives longer than `patience` seconds is ended with code -99."""
    receive, send = os.pipe()
    journal, watched = os.pipe()
    os.set_blocking(journal, False)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(function, Operations(root, watched, kill_before), send)
    os.close(send)
    os.close(watched)
    lines, code, is_killed = b"", None, False
    while code is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif kill_after is not None and not is_killed and time.monotonic() - start >= kill_after:
            if (process := victim(child)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                is_killed = True
        elif time.monotonic() - start > patience:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = -99
        else:
            time.sleep(0.002)
        with contextlib.suppress(BlockingIOError):
            lines += os.read(journal, 1 << 20)
    os.close(journal)
    with os.fdopen(receive, "rb") as file:
        text = file.read() if code != -signal.SIGKILL else b""
    value = json.loads(text) if text else None
    return Ended(code, value, lines.decode(errors="replace").splitlines(), time.monotonic() - start)


def _be(function: Callable[[], Any], operations: Operations, send: int) -> None:
    """Be the child process."""
    code, value = FAILED, None
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(null, stream)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        operations.install()
        value = function()
        code = 0
    except BaseException as error:
        value = f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(BaseException):
            os.write(send, json.dumps(value, default=str).encode()[:60000])
        os._exit(code)


def circumstances(seed: int) -> dict[str, Any]:
    """Return what a table says of how it was made."""
    import torch

    from simclr.runs.environment import code_hash, cores

    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "seed": seed, "code": code_hash(),
        "machine": f"{platform.machine()}, {cores()} cores", "python": platform.python_version(),
        "torch": torch.__version__, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
