"""The kernels in Triton's interpreter: runs tests/interpreter in a process of its own."""

from __future__ import annotations

import re

import pytest
import triton

from tests.support.checkout import ROOT
from tests.support.processes import python


@pytest.mark.slow
@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="tests/interpreter runs in this process")
def test_the_kernels_pass_their_tests_in_the_interpreter():
    # The parent's options and cache are its own: -k or --junitxml must not reach the child.
    child = python(
        *("-m", "pytest", "tests/interpreter", "-q", "-x", "-p", "no:cacheprovider"),
        cwd=ROOT,
        env={"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert re.search(r"\b[1-9]\d* passed", child.stdout.rstrip().splitlines()[-1]), child.stdout
