"""The decoder's upsampling blocks: ``python -m pytest bench/ops/bench_upsample_conv.py``.

tflop_per_s counts the 5x5 filters on the large image, of which ours computes 36 %, so
percent_of_matmul may exceed 100.
"""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from bench.ops import conv_cases, harness
from bench.ops.conv_cases import GPU, Layer
from fastunit.kernels import upsample_conv

LAYERS = (
    {"up-1": Layer(256, 128, 64, 5, norm="ln"), "up-2": Layer(128, 64, 128, 5, norm="ln")}
    if GPU
    else {"up": Layer(64, 32, 32, 5, norm="ln")}
)


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("implementation", conv_cases.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LAYERS)
def bench_upsample_conv(benchmark, device, name, implementation, mode):
    layer = LAYERS[name]
    size_out = 2 * layer.size

    def ours(x, w, b, **rest):
        options = {"padding": layer.padding, "pad_mode": "reflect"}
        return upsample_conv(x, w, b, **options, norm=layer.norm, act=layer.act, **rest)

    def eager(x, w, b, **rest):
        large = F.interpolate(x, scale_factor=2, mode="nearest")
        haloed = F.pad(large, (layer.padding,) * 4, mode="reflect")
        return conv_cases.eager_tail(layer, F.conv2d(haloed, w, b), **rest)

    conv_cases.measure(
        benchmark,
        device,
        f"upsample_conv {name} {mode}",
        implementation,
        mode,
        ours,
        eager,
        layer.tensors(device, size_out),
        flops=conv_cases.GEMMS[mode] * layer.flops(size_out),
    )
