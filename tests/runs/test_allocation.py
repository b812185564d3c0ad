"""Memory allocator of the C library."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from simclr.runs.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_the_pages_of_a_freed_tensor_are_used_again():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert after < 5 <= before  # 5 tensors of 64 MB


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("the C library was called"))
    from simclr.runs.allocation import keep_freed_memory

    keep_freed_memory()
