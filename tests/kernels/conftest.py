"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastunit.kernels.common.runtime import default_impl


@pytest.fixture(autouse=True)
def _operators() -> Iterator[None]:
    """Let "auto" take the operators, which it leaves on a CPU for images as small as in tests.

    "plain" is in test_plain.py.
    """
    with default_impl("aten"):
        yield
