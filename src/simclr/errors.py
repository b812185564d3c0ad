"""Exceptions of the package.

    Error (ValueError)        something that the user can put right; one line in the terminal, exit code 2
    ├── SettingError          a setting has a value that is not allowed; `field` names it
    ├── UsageError            words on the command line that cannot be parsed
    ├── DataError             images, labels, a table or an archive are not as required; `path` says where
    ├── RunError              a run folder, weights file or result file is not as required; `path` says where
    └── UnreadableImage       one image cannot be decoded; `path` names it and `reason` says why
    TooManyBadImages          more images are unreadable than `max_bad` allows; exit code 1
    DivergedError             loss or weights are not finite (FloatingPointError); exit code 1
    Interrupted               the run was asked to stop and saved a checkpoint; exit code 75

On the command line, every other exception apart from OSError and a lack of memory is reported as a bug. Library
functions raise ValueError for wrong arguments.
"""

from typing import Any

_UNSET: Any = object()


class Error(ValueError):
    """Something that the user can put right."""


class SettingError(Error):
    """A setting has a value that is not allowed: `FIELD must be ALLOWED, got VALUE. REMEDY`"""

    def __init__(self, field: str, allowed: str, got: Any = _UNSET, remedy: str = ""):
        super().__init__(field, allowed, got, remedy)
        self.field = field
        self.remedy = remedy
        self._text = f"{field} must be {allowed}"
        if got is not _UNSET:
            self._text += f", got {got!r}" if isinstance(got, str) else f", got {got}"
        if remedy:
            self._text += f". {remedy}"

    def __str__(self) -> str:
        return self._text

    def with_remedy(self, remedy: str) -> "SettingError":
        """Return this error with a further remedy."""
        field, allowed, got, before = self.args
        return SettingError(field, allowed, got, f"{before}. {remedy}" if before else remedy)


class UsageError(Error):
    """Words on the command line that cannot be parsed."""


class _Located(Error):
    def __init__(self, path: Any, problem: str, remedy: str = "", names: tuple[str, ...] = ()):
        super().__init__(path, problem, remedy, names)
        self.path = str(path)
        self.problem = problem
        self.remedy = remedy
        self.names = names  # of the settings, columns, classes or tensors at fault

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f". {self.remedy}" if self.remedy else "")


class DataError(_Located):
    """Images, labels, a table or an archive are not as required: `PATH: PROBLEM. REMEDY`"""


class RunError(_Located):
    """A run folder, weights file or result file is not as required: `PATH: PROBLEM. REMEDY.`"""


class UnreadableImage(Error):
    """One image cannot be decoded; `path` names it and `reason` says why, in one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class TooManyBadImages(Exception):
    """More images are unreadable than the run allows."""


class DivergedError(FloatingPointError):
    """Loss or weights are not finite."""


class Interrupted(Exception):
    """The run was asked to stop and saved a checkpoint; the same command resumes it."""
