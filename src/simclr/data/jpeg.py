"""Decoding of JPEG files with libjpeg-turbo: whole, reduced, or a region.

simplejpeg contains the library and decodes whole images. Regions need the interface of libjpeg-turbo 3, which comes
with the wheel `turbojpeg` (the extra `turbo`) or the system; without it whole images are decoded. The pixels are equal.
"""

import ctypes
import importlib.util
import threading
from collections.abc import Iterator
from functools import cache

import numpy as np
import simplejpeg
from jaxtyping import UInt8

Box = tuple[int, int, int, int]
"""(y, x, height, width)"""

_DECOMPRESS, _SUBSAMPLING, _WIDTH, _RGB = 1, 4, 5, 0  # TJINIT_, TJPARAM_, TJPARAM_JPEG and TJPF_ of turbojpeg.h
_MCU_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # pixels, by TJSAMP: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_SYSTEM = ("libturbojpeg.so.0", "libturbojpeg.0.dylib")


def header(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a colour or grey JPEG file as it is stored; None for all other files."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return (height, width) if colours in ("YCbCr", "Gray") else None


def may_be_turned(content: bytes) -> bool:
    """Return whether the EXIF or XMP data of a JPEG file may contain an orientation."""
    return any(b"Exif" in segment or b":Orientation" in segment for segment in _application_segments(content))


def _application_segments(content: bytes) -> Iterator[bytes]:
    """Yield the APP1 segments before the first scan; if a segment is malformed, all the rest of the file."""
    at = 2
    while at + 4 <= len(content):
        kind, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if content[at] != 0xFF or kind == 0xFF or length < 2:
            yield content[at:]
            return
        if kind == 0xDA:  # start of scan
            return
        if kind == 0xE1:
            yield content[at : at + 2 + length]
        at += 2 + length


def whole(content: bytes, size: tuple[int, int], reduction: int = 1) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode a file whose header gave `size`, at 1, 1/2, 1/4 or 1/8 of its side; return None if it has a fault."""
    minimum = [-(-side // reduction) for side in size]
    try:
        return simplejpeg.decode_jpeg(content, min_height=minimum[0], min_width=minimum[1])
    except ValueError:
        return None


def reads_regions() -> bool:
    """Return whether a library for `region` is available."""
    return _library() is not None


def region(content: bytes, box: Box, reduction: int = 1) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]] | None:
    """Return pixels that cover `box` of an image, and the (y, x) of the first; all in pixels of the reduced image.

    Pixels in the box equal those of the whole image; columns beside it may not. Return None without a library for
    regions, or if the file has a fault.
    """
    library = _library()
    # a region of a truncated file may be complete, but whether an image is readable must not depend on its crops
    if library is None or not content.endswith(b"\xff\xd9"):
        return None
    handle = _handle(library)
    if library.tj3DecompressHeader(handle, content, len(content)):
        return None
    sampling = library.tj3Get(handle, _SUBSAMPLING)
    if not 0 <= sampling < len(_MCU_WIDTHS):
        return None
    mcu = -(-_MCU_WIDTHS[sampling] // reduction)
    y, x, height, width = box
    # one pixel more on either side, since colours are interpolated, and starting at a border of blocks
    left = max(x - 1, 0) // mcu * mcu
    right = min(x + width + 1, -(-library.tj3Get(handle, _WIDTH) // reduction))
    pixels = np.empty((height, right - left, 3), np.uint8)
    failed = (
        library.tj3SetScalingFactor(handle, _Factor(1, reduction))
        or library.tj3SetCroppingRegion(handle, _Region(left, y, right - left, height))
        or library.tj3Decompress8(handle, content, len(content), pixels.ctypes.data, 0, _RGB)
    )
    return None if failed else (pixels, (y, left))


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Factor(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("num", "denom")]


@cache
def _library() -> ctypes.CDLL | None:
    """Return a library with libjpeg-turbo's functions for regions, or one that is linked to it."""
    spec = importlib.util.find_spec("turbojpeg")  # another package of this name has no library
    for name in (*([spec.origin] if spec and spec.origin else []), *_SYSTEM):
        try:
            library = ctypes.CDLL(name)
            handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
            library.tj3Init.restype = handle
            library.tj3Init.argtypes = [ctypes.c_int]
            library.tj3Get.argtypes = [handle, ctypes.c_int]
            library.tj3DecompressHeader.argtypes = [handle, text, size]
            library.tj3SetScalingFactor.argtypes = [handle, _Factor]
            library.tj3SetCroppingRegion.argtypes = [handle, _Region]
            library.tj3Decompress8.argtypes = [handle, text, size, handle, ctypes.c_int, ctypes.c_int]
            return library
        except (OSError, AttributeError):
            continue
    return None


_thread = threading.local()


def _handle(library: ctypes.CDLL) -> int:
    """Return the decompressor of this thread."""
    if not hasattr(_thread, "handle"):
        _thread.handle = library.tj3Init(_DECOMPRESS)
    return _thread.handle
