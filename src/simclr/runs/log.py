"""Log of a run: metrics.jsonl, one JSON object per line."""

import contextlib
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from simclr.runs.files import write_atomically
from simclr.runs.storage import UNSUPPORTED


class Follower(Protocol):
    """Receiver of the lines of a log, such as an experiment tracker."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Take a line."""

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """End, with the result of a finished run."""


class Log:
    """Lines of a file, and their follower if there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.follower: Follower | None = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        text = json.dumps(line) + "\n"
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            if error.errno not in {*UNSUPPORTED, errno.EINVAL}:
                raise
            write_atomically(
                self.path, self.path.read_text("utf-8", errors="replace") + text
            )  # nothing can be appended
        self._send([line])

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines that can be read: a full disk or a crash leaves half a line."""
        lines = []
        for text in self.path.read_text("utf-8", errors="replace").splitlines() if self.path.is_file() else []:
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return [line for line in lines if isinstance(line, dict)]

    def truncate(self, step: int) -> None:
        """Keep the lines up to a step; the follower receives them as if they were new."""
        kept = [line for line in self.lines() if line.get("step", 0) <= step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._send(kept)

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """End the follower."""
        if self.follower is not None:
            self.follower.close(result)
            self.follower = None

    def _send(self, lines: list[Mapping[str, Any]]) -> None:
        for line in lines if self.follower is not None else ():
            self.follower.log(line)
