"""Other projects' networks before and after `accelerate`: ``pytest bench/ops/bench_accelerate.py``.

Forward and backward of one image; eager_ratio is the original's time over the accelerated one's,
and `fused` the number of fused operations. On a CPU in float32 nearly all patterns are left alone
(fastunit/fusion/rules.py), and the ratio says what tracing costs; `every` fuses all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastunit
from bench.ops import harness
from bench.step.tasks import GPU
from fastunit.fusion import rules
from tests.support import networks

CASES: dict[str, Callable[[], nn.Module]] = {
    "CycleGAN generator": lambda: networks.CycleGenerator(64, 9),
    "CUT generator": lambda: networks.CutGenerator(64, 9),
    "PatchGAN": lambda: networks.PatchGan(64),
    "pix2pix U-Net": lambda: networks.Unet(64, 6),
    "UNIT generator": lambda: networks.UnitGenerator(64, 4),
    "UNIT discriminator": lambda: networks.UnitDiscriminator(64, 3),
    "MUNIT AdaINGen": lambda: networks.MunitGenerator(64, 4),
    "nnU-Net": lambda: networks.NnUnet(32),
}
SIZES = [256] if GPU else [64, pytest.param(128, marks=pytest.mark.full)]


@pytest.mark.parametrize("patterns", ["rules", pytest.param("every", marks=pytest.mark.full)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def bench_accelerate(benchmark, device, monkeypatch, name, size, patterns):
    torch._dynamo.reset()
    if patterns == "every":
        monkeypatch.setattr(rules, "loss", lambda chain: None)
    model = CASES[name]().to(device)
    x = (torch.rand(1, 3, size, size, device=device) * 2 - 1).requires_grad_()
    fast = fastunit.accelerate(model, example=x)
    benchmark.extra_info["fused"] = len(fast.acceleration.fused) // fast.acceleration.graphs
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    fused, eager = _runs(fast, x), _runs(model, x)
    harness.measure(benchmark, device, "both", fused, leaves, eager=eager)


def _runs(model: nn.Module, x: Tensor) -> harness.Run:
    def run() -> tuple[Tensor, ...]:
        return tuple(_tensors(model(x)))

    return run


def _tensors(y: object) -> list[Tensor]:
    if isinstance(y, Tensor):
        return [y]
    assert isinstance(y, (tuple, list))
    return [tensor for part in y for tensor in _tensors(part)]
