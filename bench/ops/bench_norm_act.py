"""Norm, activation and halo: ``python -m pytest bench/ops/bench_norm_act.py``.

Shapes are UNIT's: at 256x256 the residual blocks, the first layer, and the decoder's layer norm.
gb_per_s counts each input read once and each result written once. A norm reads its input twice, to
compute statistics first; without one, a block's tail is one pass, as in a network, where the
product before it has computed the statistics.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.ops import harness
from fastunit.kernels import norm_act

GPU = torch.cuda.is_available()
CASES = (
    [
        *(("in", 1, 256, 64), ("in", 8, 256, 64), ("in", 1, 64, 256), ("ln", 1, 128, 128)),
        *(("none", 1, 256, 64), ("none", 8, 256, 64)),
    ]
    if GPU
    else [("in", 2, 64, 32), ("in", 1, 64, 128), ("ln", 1, 64, 64), ("none", 1, 64, 128)]
)
IMPLEMENTATIONS = ("ours", "eager", "compiled") if GPU else ("ours", "eager")
HALO = 1


def eager(x, norm, gamma, beta):
    """Return the same, computed with PyTorch's own operations."""
    if norm == "in":
        y = F.instance_norm(x, weight=gamma, bias=beta)
    elif norm == "none":
        y = x * gamma[:, None, None] + beta[:, None, None]
    else:
        std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
        y = (x - mean) / (std + 1e-5) * gamma[:, None, None] + beta[:, None, None]
    return F.pad(F.relu(y), (HALO,) * 4, mode="reflect")


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("norm", "samples", "channels", "size"), CASES)
def bench_norm_act(benchmark, device, norm, samples, channels, size, implementation, mode):
    dtype = torch.bfloat16 if GPU else torch.float32
    x = torch.randn(samples, channels, size, size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    gamma, beta = (torch.rand(channels, device=device, dtype=dtype) for _ in range(2))
    leaves = (x, gamma.requires_grad_(), beta.requires_grad_())
    options = {"norm": norm, "act": "relu", "halo": HALO, "pad_mode": "reflect"}
    compiled = harness.compiled(eager) if implementation == "compiled" else None
    runs = {
        "ours": lambda: norm_act(x, gamma=gamma, beta=beta, **options),
        "eager": lambda: eager(x, norm, gamma, beta),
        "compiled": lambda: compiled(x, norm, gamma, beta),
    }
    result = samples * channels * (size + 2 * HALO) ** 2
    forward = (x.numel() + result) * x.element_size()
    backward = (2 * x.numel() + result) * x.element_size()
    moved = {"forward": forward, "backward": backward, "both": forward + backward}
    harness.measure(
        benchmark,
        device,
        mode,
        runs[implementation],
        leaves,
        eager=None if implementation == "eager" else runs["eager"],
        moved_bytes=moved[mode],
    )
