"""Without Triton the package works on PyTorch's kernels, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.support.checkout import ROOT

BLOCKED = {
    "no such module": """
        import importlib.abc, sys

        class Blocked(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition(".")[0] == "triton":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocked())
    """,
    "None in sys.modules": "import sys; sys.modules['triton'] = None",
}

WORK = """
import sys

import torch

import fastunit
from fastunit.kernels import conv_norm_act, reparameterize

x, w = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(4, 3, 3, 3)
y = conv_norm_act(x, w, padding=1, pad_mode="reflect", norm="in", act="relu")
z, kl = reparameterize(y, state=fastunit.kernels.noise_state(3))
(z.sum() + kl).backward()
assert x.grad.isfinite().all()
block = fastunit.Conv2dBlock(3, 4, 3, 1, 1, norm="ln")
block(x).sum().backward()
assert not any(name.partition(".")[0] == "triton" for name in sys.modules if sys.modules[name])
assert not torch.utils._triton.has_triton_package()
try:
    conv_norm_act(x, w, impl="triton")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("how", BLOCKED)
def test_everything_but_the_kernels_works(how):
    code = textwrap.dedent(BLOCKED[how]) + WORK
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == (
        "impl='triton' needs the package triton, which is not installed (pip install triton, on "
        "Linux); use impl='auto' or 'aten'\n"
    )
