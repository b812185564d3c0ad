"""Fixtures shared by every room of the tests."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see simclr.cli.main

import numpy as np
import pytest

SHARED = Path(os.environ.get("SIMCLR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
    """Path of a file of reference material kept beside the checkout; the test skips where it is absent."""

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"reference material {relative} is not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def golden(shared):
    """Arrays written by the official TensorFlow code, as a dict."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(shared(f"golden/{name}"), allow_pickle=False) as arrays:
            return dict(arrays)

    return load
