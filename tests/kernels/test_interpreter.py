"""The kernels in Triton's interpreter: runs tests/interpreter in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="tests/interpreter runs in this process")
def test_the_kernels_pass_their_tests_in_the_interpreter():
    # The parent's options and cache are its own: -k or --junitxml must not reach the child.
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/interpreter", "-q", "-x", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.returncode == 0, child.stdout
    assert re.search(r"\b[1-9]\d* passed", child.stdout.rstrip().splitlines()[-1]), child.stdout
