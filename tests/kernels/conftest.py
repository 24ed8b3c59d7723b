"""Tests of the kernels: memory that nothing has written is full of NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.poison import poisoned_memory


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    with poisoned_memory():
        yield
