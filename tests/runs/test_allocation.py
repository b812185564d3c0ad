"""Memory allocator of the C library."""

import platform
import subprocess
import sys

import pytest

from simclr.runs import allocation

PROGRAM = """
import resource, torch
from simclr.runs.allocation import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = min(faults() for _ in range(3))
keep_freed_memory()
after = min(faults() for _ in range(5))  # the heap grows a few times first
return_freed_memory()
print(before, after, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_the_pages_of_a_freed_tensor_are_used_again_until_they_are_returned():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, kept, returned = map(int, run.stdout.split())
    assert kept < 5 <= before  # 5 tensors of 64 MB
    assert kept < returned


def test_another_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation, "_is_glibc", lambda: False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("the C library was called"))
    allocation.keep_freed_memory()
    allocation.return_freed_memory()
