"""Data sets: sources of images with labels and splits, and their decoding."""

from simclr.data.decoding import decode
from simclr.data.source import Source
from simclr.data.specs import open_source
from simclr.errors import UnreadableImage

__all__ = ["Source", "UnreadableImage", "decode", "open_source"]
