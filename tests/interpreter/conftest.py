"""Tests that run the Triton kernels on the CPU, in Triton's interpreter.

Triton turns its interpreter on or off for a whole process, when a kernel's module is imported.
An ordinary run therefore skips what is here, in one line, and tests/kernels/test_interpreter.py
runs it in a child process. By hand: ``TRITON_INTERPRET=1 python -m pytest tests/interpreter``.
Memory that no kernel has written is full of NaN, and a kernel that leaves its tensors raises.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import triton

from tests.support.addresses import checked_addresses
from tests.support.poison import poisoned_memory


def pytest_runtest_setup() -> None:
    # Skipped from this one place, pytest's report folds all of these tests into one line.
    if not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1; tests/kernels/test_interpreter.py runs it so")


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(autouse=True)
def _addresses() -> Iterator[None]:
    with checked_addresses():
        yield
