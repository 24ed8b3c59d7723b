"""Tests of the kernels: the operators, in memory that is full of NaN until something writes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastunit.kernels.common.runtime import default_impl
from tests.support.poison import poisoned_memory


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(autouse=True)
def _operators() -> Iterator[None]:
    """Let "auto" take the operators, which on a CPU it does not for images as small as in tests.

    "plain" is in test_plain.py.
    """
    with default_impl("aten"):
        yield
