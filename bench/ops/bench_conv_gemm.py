"""Convolutions of images with a halo: ``python -m pytest bench/ops/bench_conv_gemm.py``.

The GEMM of each layer alone, with bias and activation if the layer has no norm. Here
"channels_last" is cuDNN's convolution of the same buffer. "dgrad" and "wgrad" are the two parts of
"backward".
"""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from bench.ops import conv_cases
from fastunit.kernels import conv_gemm

LAYERS = {name: layer for name, layer in conv_cases.LAYERS.items() if not layer.skip}
# What is timed: the harness's mode, the tensors to differentiate by, the number of GEMMs.
PASSES = {
    "forward": ("forward", None, 1),
    "backward": ("backward", None, 2),
    "both": ("both", None, 3),
    "dgrad": ("backward", "x", 1),
    "wgrad": ("backward", "w", 1),
}


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("implementation", conv_cases.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LAYERS)
def bench_conv_gemm(benchmark, device, name, implementation, direction):
    layer = LAYERS[name]
    fused = layer._replace(norm="none", act=layer.act if layer.norm == "none" else "none")
    haloed = fused._replace(size=layer.size + 2 * layer.padding)
    tensors = haloed.tensors(device, layer.size_out)
    if layer.norm != "none":
        del tensors["b"]  # the norm cancels it
    mode, wanted, gemms = PASSES[direction]

    def ours(x, w, b=None):
        return conv_gemm(x, w, b, stride=layer.stride, act=fused.act)

    def eager(x, w, b=None):
        return conv_cases.eager_tail(fused, F.conv2d(x, w, b, layer.stride))

    conv_cases.measure(
        benchmark,
        device,
        f"conv_gemm {name} {direction}",
        implementation,
        mode,
        ours,
        eager,
        tensors,
        wanted=wanted,
        flops=gemms * layer.flops(layer.size_out),
    )
