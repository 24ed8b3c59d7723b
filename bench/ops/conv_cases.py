"""Shared by the benchmarks of convolutional blocks: UNIT's layers, contenders and ceilings.

"eager" is PyTorch's own operations in NCHW; "channels_last" the same in that format (on a GPU
cuDNN's best kernels); "compiled" is compiled by Inductor. Rates count the FLOPs of the direct
formulation for all implementations. eager_ratio is the time of "eager", which must be part of the
same run, divided by that of the implementation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model import peaks
from bench.ops import harness

GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if GPU else torch.float32
IMPLEMENTATIONS = ("eager", "channels_last", "compiled", "ours") if GPU else ("eager", "ours")
GEMMS = {"forward": 1, "backward": 2, "both": 3}  # number of GEMMs with a convolution's FLOPs

_ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "lrelu": lambda y: F.leaky_relu(y, 0.2),
    "tanh": torch.tanh,
}
_eager_us: dict[str, float] = {}  # by benchmark group


class Layer(NamedTuple):
    """`channels_out` filters of taps x taps on images [samples, channels, size, size]."""

    channels: int
    channels_out: int
    size: int
    taps: int
    stride: int = 1
    norm: str = "in"
    act: str = "relu"
    samples: int = 1
    skip: bool = False

    @property
    def padding(self) -> int:
        return (self.taps - 1) // 2

    @property
    def size_out(self) -> int:
        """Rows and columns of the result of a convolution."""
        return (self.size + 2 * self.padding - self.taps) // self.stride + 1

    def flops(self, size: int) -> int:
        """Return the FLOPs of size x size windows."""
        return 2 * self.samples * size**2 * self.taps**2 * self.channels * self.channels_out

    def tensors(self, device: torch.device, size_out: int, transposed: bool = False) -> dict:
        """Return the tensors of a block by name; w [C, K, R, S] where transposed."""
        random = functools.partial(torch.randn, device=device, dtype=DTYPE)
        channels = (self.channels_out, self.channels)
        w = random(*(channels[::-1] if transposed else channels), self.taps, self.taps)
        found = {
            "x": random(self.samples, self.channels, self.size, self.size),
            "w": w / (self.taps * self.channels**0.5),
            "b": random(self.channels_out),
        }
        if self.norm == "ln":
            found |= {"gamma": random(self.channels_out), "beta": random(self.channels_out)}
        if self.skip:
            found["residual"] = random(self.samples, self.channels_out, size_out, size_out)
        return found


# On a GPU those of photographs of 256x256 in networks of width 64.
LAYERS = (
    {
        "residual": Layer(256, 256, 64, 3),
        "residual-8": Layer(256, 256, 64, 3, samples=8),
        "residual-8-skip": Layer(256, 256, 64, 3, act="none", samples=8, skip=True),
        "first": Layer(3, 64, 256, 7),
        "down-1": Layer(64, 128, 256, 4, stride=2),
        "down-2": Layer(128, 256, 128, 4, stride=2),
        "last": Layer(64, 3, 256, 7, norm="none", act="tanh"),
        "discriminator-1": Layer(3, 64, 256, 4, stride=2, norm="none", act="lrelu"),
        "discriminator-2": Layer(64, 128, 128, 4, stride=2, norm="none", act="lrelu"),
        "discriminator-3": Layer(128, 256, 64, 4, stride=2, norm="none", act="lrelu"),
        "discriminator-4": Layer(256, 512, 32, 4, stride=2, norm="none", act="lrelu"),
    }
    if GPU
    else {
        "residual": Layer(64, 64, 32, 3, samples=2),
        "residual-skip": Layer(64, 64, 32, 3, act="none", samples=2, skip=True),
        "down": Layer(32, 64, 64, 4, stride=2),
        "last": Layer(32, 3, 64, 7, norm="none", act="tanh"),
    }
)


def eager_tail(
    layer: Layer,
    y: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return a block's norm, activation and residual, computed with PyTorch's own operations."""
    if layer.norm == "in":
        y = F.instance_norm(y)
    elif layer.norm == "ln":
        std, mean = torch.std_mean(y, (1, 2, 3), keepdim=True)
        y = (y - mean) / (std + 1e-5) * gamma[:, None, None] + beta[:, None, None]
    y = _ACTS[layer.act](y)
    return y if residual is None else y + residual


def measure(
    benchmark: Any,
    device: torch.device,
    case: str,
    implementation: str,
    mode: str,
    ours: Callable[..., Tensor],
    eager: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    *,
    wanted: Iterable[str] | None = None,
    flops: int | None = None,
    moved_bytes: int | None = None,
) -> None:
    """Time one implementation with `harness.measure`, and record rates and ratios.

    Args:
        benchmark: pytest-benchmark's fixture.
        device: of the tensors.
        case: the group of the report: what all implementations compute.
        implementation: one of `IMPLEMENTATIONS`.
        mode: "forward", "backward" or "both".
        ours: fastunit's operation; takes the tensors by name.
        eager: PyTorch's operations, likewise.
        tensors: the arguments.
        wanted: the tensors to differentiate by, if not all.
        flops: of the mode, for tflop_per_s and, on a GPU, percent_of_matmul.
        moved_bytes: least bytes read and written, on a GPU for gb_per_s and percent_of_copy.
    """
    benchmark.group = case
    form = torch.contiguous_format if implementation == "eager" else torch.channels_last
    tensors = {
        name: value.contiguous(memory_format=form) if value.dim() == 4 else value
        for name, value in tensors.items()
    }
    leaves = [tensors[name].requires_grad_() for name in (wanted or tensors)]
    run = ours if implementation == "ours" else eager
    if implementation == "compiled":
        run = harness.compiled(eager)
    # cuDNN chooses its kernels by timing them, as for the release.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        harness.measure(
            benchmark, device, mode, lambda: run(**tensors), leaves, moved_bytes=moved_bytes
        )
    _compare(benchmark, implementation, flops)


def _compare(benchmark: Any, implementation: str, flops: int | None) -> None:
    facts = benchmark.extra_info
    if implementation == "eager":
        _eager_us[benchmark.group] = facts["median_us"]
    elif benchmark.group in _eager_us:
        facts["eager_ratio"] = round(_eager_us[benchmark.group] / facts["median_us"], 2)
    if flops is not None:
        rate = flops / facts["median_us"] / 1e6
        facts["tflop_per_s"] = float(f"{rate:.3g}")
        if GPU:
            facts["percent_of_matmul"] = round(100 * rate / peaks.measured().tflop_per_s, 1)
    if "gb_per_s" in facts:
        share = facts["gb_per_s"] / peaks.measured().gb_per_s
        facts["percent_of_copy"] = round(100 * share, 1)
