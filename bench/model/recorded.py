"""The kernels of fastunit's training step in order, recorded as a GPU would run it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.model import groups
from bench.model.fusion import fused
from bench.model.gpu import Gpu
from bench.model.trace import Event, Trace
from fastunit.config import Config
from fastunit.models.unit import UNIT
from fastunit.training.ema import Average
from fastunit.training.step import TrainStep

# What "auto" means on a GPU; without torch.compile, whose part `compiled` estimates.
ON_A_GPU = {"precision": "bf16", "pair_domains": "on", "compile": "off", "graphs": "off"}


@dataclass
class Step:
    """A step's kernels in order.

    Attributes:
        events: the kernels.
        names: each one's group.
        waits: calls that make the host wait for the device, with their number.
    """

    events: list[Event]
    names: list[str]
    waits: dict[str, int]

    @property
    def variants(self) -> int:
        """The number of Triton variants, each of which is compiled once on a new machine."""
        return len({event.variant.key for event in self.events if event.variant is not None})


def record(settings: Config, gpu: Gpu) -> Step:
    """Return the kernels of the second step of a training; the first allocates Adam's moments.

    Grouped execution, bf16 autocast, float32 weights in channels_last, fused Adam and, where the
    settings have one, the weights' moving average. Nothing is computed.
    """
    settings = replace(settings, **ON_A_GPU)
    unit = UNIT(settings).to(memory_format=torch.channels_last)
    average = Average(unit.generator_pair(), settings.ema_decay) if settings.ema_decay else None
    step = TrainStep(unit, settings, average=average)
    x_a, x_b = images(settings)
    with Trace(gpu) as trace:
        step(x_a, x_b)
        trace.clear()
        step(x_a, x_b)
    shapes = weight_shapes(unit)
    names = [groups.group_of(event, shapes) for event in trace.events]
    return Step(trace.events, names, dict(trace.waits))


def images(settings: Config) -> tuple[Tensor, Tensor]:
    """Return a batch of each domain, [N, C, H, W] float32 in channels_last, of no value."""
    x_a, x_b = (
        torch.empty(settings.batch_size, channels, *settings.crop).to(
            memory_format=torch.channels_last
        )
        for channels in (settings.input_dim_a, settings.input_dim_b)
    )
    return x_a, x_b


def weight_shapes(module: nn.Module) -> set[tuple[int, ...]]:
    """Return the parameters' shapes, sorted; also with both domains stacked."""
    shapes = {tuple(sorted(p.shape)) for p in module.parameters()}
    return shapes | {tuple(sorted((2, *shape))) for shape in shapes}


def compiled(step: Step) -> Step:
    """Return the step with its losses fused, as with torch.compile (`fusion.fused`).

    Only that: that compiled blocks may lay weights out anew, as they do today, is not counted.
    """
    names = {id(event): name for event, name in zip(step.events, step.names, strict=True)}
    events = fused(step.events, lambda event: groups.is_fusable(event, names[id(event)]))
    return Step(events, [names.get(id(event), groups.FUSABLE) for event in events], step.waits)
