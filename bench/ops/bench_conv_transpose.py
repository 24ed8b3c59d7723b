"""Transposed convolutions of the paper's decoders: ``pytest bench/ops/bench_conv_transpose.py``."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from bench.ops import conv_cases, harness
from bench.ops.conv_cases import GPU, Layer
from fastunit.kernels import conv_transpose

LAYERS = (
    {"up-1": Layer(256, 128, 64, 3, stride=2), "up-2": Layer(128, 64, 128, 3, stride=2)}
    if GPU
    else {"up": Layer(64, 32, 32, 3, stride=2)}
)


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("implementation", conv_cases.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LAYERS)
def bench_conv_transpose(benchmark, device, name, implementation, mode):
    layer = LAYERS[name]
    where = {"stride": layer.stride, "padding": layer.padding, "output_padding": 1}

    def ours(x, w, b, **rest):
        return conv_transpose(x, w, b, **where, norm=layer.norm, act=layer.act, **rest)

    def eager(x, w, b, **rest):
        return conv_cases.eager_tail(layer, F.conv_transpose2d(x, w, b, **where), **rest)

    conv_cases.measure(
        benchmark,
        device,
        f"conv_transpose {name} {mode}",
        implementation,
        mode,
        ours,
        eager,
        layer.tensors(device, layer.stride * layer.size, transposed=True),
        # Every input pixel is multiplied by every tap, except those cut off at the border.
        flops=conv_cases.GEMMS[mode] * layer.flops(layer.size),
    )
