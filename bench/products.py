"""The products of a training step, each on our kernel and on cuDNN in its place.

`asked` finds them where `kernels.cudnn` is asked which of the two is faster; `product` makes one to
be timed, with what the choice brings besides: cuDNN has no epilogue.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parent))  # aot imports what is beside it

import torch
from torch import Tensor

from fastunit.config import Config
from fastunit.kernels import conv_block_triton, conv_frames, cudnn, norm_act_triton
from fastunit.kernels import conv_gemm_triton as gemm
from fastunit.kernels.conv_plan import Plan

IMPLEMENTATIONS = ("triton", "cudnn")


class Ask(NamedTuple):
    """A product that a step asks `cudnn.FASTER` about; shapes are of x [N, C, H, W] and raw w."""

    layer: cudnn.Layer
    plan: Plan
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        layer = self.layer
        kind = "transposed " if layer.transposed else ""
        filters = f"{layer.taps}x{layer.taps}" + (f" / {layer.stride}" if layer.stride > 1 else "")
        samples = f"{self.x_shape[0]} samples in {self.w_shape[0]} groups"
        after = "normalised" if self.plan.norm != "none" else self.plan.act
        after = f", {after}" if layer.direction == "fprop" else ""  # what its launch also does
        pair = f"{layer.channels} to {layer.channels_out}"
        return f"{layer.direction} {kind}{pair} {filters}, {layer.pixels} pixels, {samples}{after}"

    @property
    def work(self) -> int:
        """Multiply-adds, up to border and stride: what the longest are found by."""
        layer = self.layer
        return layer.pixels * layer.channels * layer.channels_out * layer.taps**2


def asked(settings: Config, arch: int, dtype: torch.dtype = torch.bfloat16) -> dict[Ask, int]:
    """Return a training step's products with how often each is asked for, the most work first."""
    from aot import step_launches

    found: dict[str, Ask] = {}
    counts: Counter[str] = Counter()
    last: tuple[Plan, tuple[int, ...], tuple[int, ...]]

    def convolution(plan: Plan, x_shape: Sequence[int], w: Tensor) -> object:
        nonlocal last
        last = plan, tuple(x_shape), tuple(w.shape)
        return conv_frames.convolution(plan, x_shape, w)

    class Noted:
        def __contains__(self, layer: cudnn.Layer) -> bool:
            ask = Ask(layer, *last)
            found.setdefault(ask.name, ask)
            counts[ask.name] += 1
            return False

    patched = mock.patch.object(conv_block_triton, "convolution", convolution)
    with patched, mock.patch.object(cudnn, "FASTER", Noted()):
        step_launches(settings, arch, dtype)
    longest = sorted(found.values(), key=lambda ask: -counts[ask.name] * ask.work)
    return {ask: counts[ask.name] for ask in longest}


def product(ask: Ask, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Callable]:
    """Return filters [G, K, C, R, S] in fp32, whose forms may be kept, and the product to time.

    A fprop ends with the tiles' statistics or with bias and activation, for which cuDNN's needs
    passes of their own. Corrections of a reflected border cost both the same and are left out.
    """
    w = torch.randn(ask.w_shape, device=device) / ask.w_shape[-1]
    conv = conv_frames.convolution(ask.plan, ask.x_shape, w)
    frames = [
        frame.empty(ask.x_shape[0], torch.empty(0, device=device, dtype=dtype)).normal_()
        for frame in (conv.x_frame, conv.dy_frame)
    ]
    haloed, dy = frames
    filters = conv_block_triton._filters(ask.plan, w)
    epilogue = _epilogue(ask.plan, w)

    def fprop() -> Tensor:
        y, partial = conv_block_triton._product(conv, haloed, filters, epilogue)
        return norm_act_triton._statistics(y) if epilogue.statistics and partial is None else y

    def dgrad() -> Tensor:
        by_cudnn = conv.cudnn.is_faster("dgrad", dy, filters)
        return conv.cudnn.dgrad(haloed, dy, filters) if by_cudnn else conv.dgrad(dy, filters)

    def wgrad() -> Tensor:
        by_cudnn = conv.cudnn.is_faster("wgrad", dy, filters)
        return (conv.cudnn.wgrad if by_cudnn else conv.wgrad)(haloed, dy, filters)

    passes = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}
    return filters, passes[ask.layer.direction]


def _epilogue(plan: Plan, w: Tensor) -> gemm.Epilogue:
    if plan.norm != "none":
        return gemm.Epilogue(statistics=True)
    bias = w.new_zeros(len(w), plan.channels_out(w))
    return gemm.Epilogue(bias, act=plan.act, slope=plan.slope)


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Let every product be one of `IMPLEMENTATIONS` inside the block."""

    class Everything:
        def __contains__(self, layer: cudnn.Layer) -> bool:
            return True

    table = Everything() if implementation == "cudnn" else frozenset()
    with mock.patch.object(cudnn, "FASTER", table):
        yield
