"""Where images come from: sources, decoding, batches."""

from .decoding import UnreadableImage, decode
from .opening import open_source
from .sources import Source

__all__ = ["Source", "UnreadableImage", "decode", "open_source"]
