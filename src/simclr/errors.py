"""Exceptions of the package."""


class UnreadableImage(Exception):
    """An image that cannot be decoded; `path` names it and `reason` says why, in one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class TooManyBadImages(Exception):
    """More of the images are unreadable than the run allows."""


class Interrupted(Exception):
    """The run was asked to stop, and saved what it had; the same command goes on from there."""


class UsageError(Exception):
    """What the user wrote cannot be understood."""
