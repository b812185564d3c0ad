"""Fixtures of the tests of tasks."""

from support.evaluated import data, encoder  # noqa: F401
