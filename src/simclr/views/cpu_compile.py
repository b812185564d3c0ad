"""Compilation of the CPU kernels, and the constants that they share.

numba compiles a kernel at its first use and caches it on disk. Its cache watches only the file of the function that
Python calls, so `cpu_geometry` and `cpu_colour` each contain all functions that their kernels call.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

F = np.float32  # a bare literal would turn the arithmetic into double precision
ZERO, HALF, ONE, TWO, FOUR, FIVE, SIX = F(0), F(0.5), F(1), F(2), F(4), F(5), F(6)


def exact(function: Callable) -> Callable:
    """Compile so that every operation rounds as written."""
    return _compiled(function)


def fast(function: Callable) -> Callable:
    """Compile for speed: sums may be reordered, and no NaN is expected."""
    return _compiled(function, fastmath=True)


def contracted(function: Callable) -> Callable:
    """Compile with fused multiply-adds; NaN and infinity follow IEEE 754."""
    return _compiled(function, fastmath={"contract"})


def spread_loops(function: Callable) -> Callable:
    """Compile as `contracted`, with loops over numba.prange spread over threads."""
    return _compiled(function, fastmath={"contract"}, parallel=True)


def _compiled(function: Callable, **options: Any) -> Callable:
    function = inspect.unwrap(function)  # run-time type checkers wrap each function of the package
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no writable cache, as in a read-only container: compiled in each process
        return numba.njit(**options)(function)
