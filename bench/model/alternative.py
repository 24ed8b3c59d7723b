"""What PyTorch's strongest step would launch: an estimate from its ATen calls.

The step is `bench.step.baseline.strongest`: channels_last, bf16 autocast, nothing unused, fused
Adam. Its calls are recorded as `trace` records ours, without torch.compile, and fused by the rule
of `fusion`. Convolutions take the best tile and split of `timing.library_gemm`, as if cuDNN or
max-autotune always found it; helper kernels, layout copies and the graphs' own copies of inputs
are not counted. The estimate favours this step.
"""

from __future__ import annotations

from unittest import mock

import torch

from bench.model.fusion import fused
from bench.model.gpu import Gpu
from bench.model.recorded import Step, images
from bench.model.trace import Event, Trace
from bench.step import baseline
from fastunit.config import Config

CONVOLUTIONS = "convolutions"
OPTIMIZER = "Adam"
FUSED = "fused passes"


def record(settings: Config, gpu: Gpu) -> Step:
    """Return the kernels of the second step of the strongest baseline.

    Raises:
        ValueError: the baseline has no such networks or losses.
    """
    step = baseline.strongest(settings, torch.device("cpu"))
    for name in ("dis_losses", "gen_losses"):
        delattr(step, name)  # the compiled ones: the class has the functions themselves
    x_a, x_b = images(settings)
    with mock.patch.object(baseline, "_bf16", _bf16), Trace(gpu) as trace:
        step(x_a, x_b)
        trace.clear()
        step(x_a, x_b)
    events = fused(trace.events, lambda event: group_of(event) == FUSED)
    return Step(events, [group_of(event) for event in events], dict(trace.waits))


def _bf16(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def group_of(event: Event) -> str:
    """Return the group of one of this step's kernels."""
    if event.work.gemm is not None:
        return CONVOLUTIONS
    return OPTIMIZER if event.work.name.startswith(("_fused", "_foreach")) else FUSED
