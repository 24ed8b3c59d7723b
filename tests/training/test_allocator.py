"""Freed memory stays in the process, where the C library is glibc."""

from __future__ import annotations

import platform

import pytest

from tests.support.processes import python

FAULTS = """
import resource, sys, torch
from fastunit.training.allocator import keep_freed_memory

def use():
    tensors = [torch.ones(size << 18) for size in range(1, 20)]  # MiB
    for index in range(0, len(tensors), 2):
        tensors[index] = None

if sys.argv[1] == "keep":
    assert keep_freed_memory()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_cleared_once_not_at_every_use():
    faults = {}
    for name in ("keep", "return"):
        found = python("-c", FAULTS, name)
        assert found.returncode == 0, found.stderr
        faults[name] = int(found.stdout)
    assert faults["keep"] < faults["return"] / 2, faults
