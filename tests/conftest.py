"""Fixtures shared by all tests, and the guard of the network."""

import functools
import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see simclr.cli.main
if "PYTEST_XDIST_WORKER" in os.environ:  # each core has a worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import numpy as np
import pytest

SHARED = Path(os.environ.get("SIMCLR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")  # processes of a run meet there


class NetworkUsed(Exception):
    """A test, or the code under test, addressed another machine."""


def _refuse_other_machines(event: str, arguments: tuple) -> None:
    name = None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        name = arguments[1][0]
    elif event == "socket.getaddrinfo":
        name = arguments[0]
    if name not in (None, "", *LOCAL, *_names_of_this_machine()):
        raise NetworkUsed(str(name))


@functools.cache
def _names_of_this_machine() -> frozenset[str]:
    """Return its name and the addresses of it, by which torch's processes may meet."""
    try:
        name, aliases, addresses = socket.gethostbyname_ex(socket.gethostname())
    except OSError:
        return frozenset({socket.gethostname()})
    return frozenset((socket.gethostname(), name, *aliases, *addresses))


_names_of_this_machine()
sys.addaudithook(_refuse_other_machines)  # for all tests; forked processes inherit it


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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Check types and shapes at every call, except in slow tests, where this takes most of the time of a small
    training: other tests call the same functions."""
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)
