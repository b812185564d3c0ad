"""Files of numpy arrays (.npz, .npy), read without running code and with bounds on their size."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from simclr.errors import DataError
from simclr.runs.reading import open_regular

MAX_INFLATED = 1 << 30  # bytes of all arrays of a compressed file, if it is small
MAX_RATIO = 100  # bytes for each byte of a large compressed file; deflate reaches 1,032 with zeros
MAX_MEMBERS = 10_000


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; raise DataError unless it contains plain arrays of a usual size."""
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            check_archive(archive, path)
            return {info.filename.removesuffix(".npy"): _read_member(archive, info) for info in archive.infolist()}
    except (DataError, MemoryError):
        raise
    except Exception as reason:  # zip, decompression, header and shape raise errors of many types
        if isinstance(reason, OSError) and reason.filename:
            raise
        text = " ".join(str(reason).split()) or type(reason).__name__
        raise DataError(path, f"it is not an .npz file of plain arrays ({text})") from None


def read_array(path: Path) -> np.ndarray:
    """Return the array of an .npy file; raise DataError unless it is plain and has as many bytes as its header says."""
    try:
        open_regular(path).close()
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))  # mapped: a header alone takes no memory
    except (ValueError, EOFError, OverflowError) as reason:
        text = " ".join(str(reason).split())
        raise DataError(path, f"it is not an .npy file of a plain array ({text})") from None


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise DataError if the members of a zip file are implausibly many or large for the size of the file."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise DataError(path, f"it has {len(members):,} members; at most {MAX_MEMBERS:,} are read")
    size, most = sum(info.file_size for info in members), max(MAX_INFLATED, MAX_RATIO * path.stat().st_size)
    if size > most:
        raise DataError(path, f"its arrays have {size:,} bytes; a file of its size may have {most:,}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        _check_shape(member, info)
    with archive.open(info) as member:
        return npy.read_array(member, allow_pickle=False)


def _check_shape(member: zipfile.ZipExtFile, info: zipfile.ZipInfo) -> None:
    """Raise ValueError unless the array in a member has as many bytes as its header says."""
    version = npy.read_magic(member)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(member)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} contains Python objects")
    size = dtype.itemsize
    for extent in shape:  # Python's integers do not overflow
        size *= extent
    if size < 0 or min(shape, default=0) < 0 or member.tell() + size != info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size:,} bytes, which do not fit its shape {shape}")
