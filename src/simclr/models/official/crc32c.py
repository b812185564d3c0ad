"""Checksum of the files of TensorFlow and LevelDB."""

import inspect
from collections.abc import Callable

import numba
import numpy as np


def _crc_tables() -> np.ndarray:
    """Return tables for eight bytes at a time, with Castagnoli's polynomial, reflected."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        tables[0, byte] = crc
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0, tables[k - 1] & 0xFF]
    return tables


_TABLES = _crc_tables()


def _crc32c(data, tables):
    byte = np.uint64(0xFF)
    crc = np.uint64(0xFFFFFFFF)
    whole = len(data) // 8 * 8
    for start in range(0, whole, 8):
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(data[start + i]) << np.uint64(8 * i)
        word ^= crc
        crc = np.uint64(0)
        for i in range(8):
            crc ^= np.uint64(tables[7 - i, (word >> np.uint64(8 * i)) & byte])
    for i in range(whole, len(data)):
        crc = (crc >> np.uint64(8)) ^ np.uint64(tables[0, (crc ^ np.uint64(data[i])) & byte])
    return crc ^ np.uint64(0xFFFFFFFF)


def _compile(function: Callable) -> Callable:
    function = inspect.unwrap(function)  # run-time type checkers wrap the functions of the package
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for the cache, as in a read-only container: compiled in each process
        return numba.njit(nogil=True)(function)


_compiled = _compile(_crc32c)


def masked_crc32c(data: np.ndarray) -> int:
    """Return the CRC-32C of bytes, rotated and shifted as TensorFlow and LevelDB store it."""
    crc = int(_compiled(data, _TABLES))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
