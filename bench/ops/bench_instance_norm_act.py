"""Instance norm, activation, skip: ``python -m pytest bench/ops/bench_instance_norm_act.py``.

gb_per_s counts each input read once and each result written once, although the statistics need
another pass.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.ops import conv_cases, harness
from bench.ops.conv_cases import DTYPE, GPU
from fastunit.kernels import instance_norm_act

# Samples, channels, size; whether there is a skip connection.
CASES = (
    {
        "residual": (1, 256, 64, True),
        "residual-8": (8, 256, 64, True),
        "first": (1, 64, 256, False),
        "first-8": (8, 64, 256, False),
    }
    if GPU
    else {"residual": (2, 64, 32, True), "first": (1, 16, 64, False)}
)


def ours(x, weight, bias, residual=None):
    return instance_norm_act(x, weight=weight, bias=bias, act="relu", residual=residual)


def eager(x, weight, bias, residual=None):
    y = F.relu(F.instance_norm(x, weight=weight, bias=bias))
    return y if residual is None else y + residual


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("implementation", conv_cases.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def bench_instance_norm_act(benchmark, device, name, implementation, mode):
    samples, channels, size, skip = CASES[name]
    images = torch.randn(1 + skip, samples, channels, size, size, device=device, dtype=DTYPE)
    weight, bias = torch.randn(2, channels, device=device, dtype=DTYPE)
    tensors = {"x": images[0].clone(), "weight": weight, "bias": bias}
    if skip:
        tensors["residual"] = images[1].clone()
    # x, residual and y; the gradients of y and x, and x. The skip's gradient is y's.
    passes = {"forward": 2 + skip, "backward": 3, "both": 5 + skip}
    conv_cases.measure(
        benchmark,
        device,
        f"instance_norm_act {name} {mode}",
        implementation,
        mode,
        ours,
        eager,
        tensors,
        moved_bytes=passes[mode] * images[0].nbytes,
    )
