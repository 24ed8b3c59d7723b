"""Convolutional blocks: ``python -m pytest bench/ops/bench_conv_norm_act.py``."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from bench.ops import conv_cases, harness
from bench.ops.conv_cases import LAYERS
from fastunit.kernels import conv_norm_act


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("implementation", conv_cases.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LAYERS)
def bench_conv_norm_act(benchmark, device, name, implementation, mode):
    layer = LAYERS[name]
    options = {
        "stride": layer.stride,
        "padding": layer.padding,
        "pad_mode": "reflect",
        "norm": layer.norm,
        "act": layer.act,
    }

    def ours(x, w, b, **rest):
        return conv_norm_act(x, w, b, **options, **rest)

    def eager(x, w, b, **rest):
        haloed = F.pad(x, (layer.padding,) * 4, mode="reflect")
        return conv_cases.eager_tail(layer, F.conv2d(haloed, w, b, layer.stride), **rest)

    conv_cases.measure(
        benchmark,
        device,
        f"conv_norm_act {name} {mode}",
        implementation,
        mode,
        ours,
        eager,
        layer.tensors(device, layer.size_out),
        flops=conv_cases.GEMMS[mode] * layer.flops(layer.size_out),
    )
