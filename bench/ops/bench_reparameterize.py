"""Reparameterized sampling: ``python -m pytest bench/ops/bench_reparameterize.py``.

Codes of one and of eight 256x256 images; on a CPU a small one. gb_per_s counts each tensor of mu's
size that must be read or written once, without the noise.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops import harness
from fastunit.kernels import reparameterize

GPU = torch.cuda.is_available()
SHAPES = [(1, 256, 64, 64), (8, 256, 64, 64)] if GPU else [(2, 64, 16, 16)]
# mu, z; dz, mu, dmu; for a learned sigma also its input and the input's gradient.
TENSORS = {
    "unit": {"forward": 2, "backward": 3, "both": 5},
    "softplus": {"forward": 3, "backward": 5, "both": 8},
}


def ours(mu: Tensor, raw: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return reparameterize(mu, raw, sigma="unit" if raw is None else "softplus", kl="normal")


def eager(mu: Tensor, raw: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the same, computed with PyTorch's own operations."""
    noise, square = torch.randn_like(mu), mu.float().square()
    if raw is None:
        return mu + noise, square.sum() / (2 * len(mu))
    sigma = F.softplus(raw.float())
    terms = square + sigma.square() - 2 * sigma.log() - 1
    return (mu + sigma * noise).to(mu.dtype), terms.sum() / (2 * len(mu))


IMPLEMENTATIONS = ("ours", "eager", "compiled")


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("sigma", TENSORS)
def bench_reparameterize(benchmark, device, sigma, shape, implementation, mode):
    dtype = torch.bfloat16 if GPU else torch.float32
    values = torch.randn(1 if sigma == "unit" else 2, *shape, device=device, dtype=dtype)
    leaves = [value.clone().requires_grad_() for value in values]
    run = {"ours": ours, "eager": eager}.get(implementation) or harness.compiled(eager)
    harness.measure(
        benchmark,
        device,
        mode,
        lambda: run(*leaves),
        leaves,
        eager=None if implementation == "eager" else lambda: eager(*leaves),
        moved_bytes=TENSORS[sigma][mode] * leaves[0].nbytes,
    )
