"""Fixtures of the evaluation tests."""

from support.evaluated import data, encoder  # noqa: F401
from support.folders import folder  # noqa: F401
