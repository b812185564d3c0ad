"""Fixtures of the training tests."""

from support.folders import even, even_pixels, folder  # noqa: F401
