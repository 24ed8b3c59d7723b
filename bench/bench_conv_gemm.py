"""Convolutions of haloed images: ``python -m pytest bench/bench_conv_gemm.py``.

The product of each layer alone, with bias and activation where no norm comes between. Here
"channels_last" is cuDNN's convolution of the very buffer that ours reads. "dgrad" and "wgrad"
are the halves of "backward".

`bench_products` times, on a GPU, the products of training steps of the release's networks on images
of 256x256, one and eight: what bench/dispatch.py chooses by. The longest come first. It runs where
it is asked for, with ``-k products``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench import conv_cases, harness, products
from fastunit import config
from fastunit.kernels import conv_gemm, runtime, tiles
from fastunit.kernels.filters import keep_filters

LAYERS = {name: layer for name, layer in conv_cases.LAYERS.items() if not layer.skip}
# What is timed: the harness's mode, the tensors to differentiate by, products.
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
        del tensors["b"]  # the norm takes it away again
    mode, wanted, products = PASSES[direction]

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
        flops=products * layer.flops(layer.size_out),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is bench_products:
        wanted = conv_cases.GPU and "products" in metafunc.config.getoption("keyword")
        metafunc.parametrize("ask", _asked() if wanted else [], ids=lambda ask: ask.name)
        metafunc.parametrize("implementation", products.IMPLEMENTATIONS)


def _asked() -> list[products.Ask]:
    arch = tiles.generation(runtime.arch(torch.device("cuda", torch.cuda.current_device())))
    return [
        ask
        for batch in (1, 8)
        for ask in products.asked(config.from_dict({"batch_size": batch}), arch)
    ]


def bench_products(benchmark, device, ask, implementation):
    benchmark.group = ask.name
    weights, run = products.product(ask, device, conv_cases.DTYPE)
    with products.using(implementation), keep_filters([weights]):
        harness.measure(benchmark, device, "forward", run, [])
    benchmark.extra_info.update(product=ask.name, layer=ask.layer._asdict())
