"""Counts of other projects' networks before and after `accelerate`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.model import accelerated
from fastunit.kernels.common import runtime

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


def residual_layer() -> nn.Module:
    conv, norm = nn.Conv2d(16, 16, 3, bias=False), nn.InstanceNorm2d(16)
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReflectionPad2d(1), conv, norm, nn.ReLU(True))


def test_a_fused_layer_is_fewer_launches():
    own, fast, compiled = accelerated.measure(residual_layer(), 64)
    assert fast.launches < own.launches and compiled.launches < own.launches
    assert fast.gb > 0 and 0 < compiled.gb < own.gb


def test_what_is_recorded_is_the_rewritten_graph():
    model = residual_layer()
    x = torch.empty(1, 3, 64, 64).requires_grad_()
    events = accelerated.record(accelerated.rewritten(model, x), [x, *model.parameters()])
    kernels = [event.work.name for event in events if event.variant is not None]
    assert "conv_gemm_kernel" in kernels and "wgrad_kernel" in kernels
    assert not any("reflection_pad2d" in event.work.name for event in events)
    assert any("convolution" in event.work.name for event in events)  # the 1x1, left alone


def test_an_unknown_network_is_one_message():
    with pytest.raises(accelerated.UserError, match="no network 'ResNet'; known: CycleGAN"):
        accelerated.main(["ResNet"])
