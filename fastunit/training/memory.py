"""Forecast of training's peak memory, by running a step on tensors without data.

Every storage is counted from its creation until its last reference is gone, inside fused operations
as well. Not counted: the program itself, memory allocated by libraries (cuDNN's and oneDNN's
workspaces, the CUDA context), data loaders and sample grids. tests/training/test_memory.py compares
with the peaks of real steps:

- on a GPU `Forecast.total` is what torch.cuda.max_memory_allocated reports for a step that is
  neither compiled nor captured in a graph;
- on a CPU it is the peak of memory in use. glibc returns tensors of 32 MiB and more to the system
  when they are freed, but keeps smaller ones and cannot reuse all gaps (`Forecast.resident`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from fastunit.config import Config
from fastunit.kernels.common import runtime
from fastunit.models.live_bytes import GRADIENTS, OPTIMIZER, WEIGHTS, LiveBytes
from fastunit.models.perceptual import Perceptual
from fastunit.models.unit import networks
from fastunit.training.step import TrainStep

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Forecast:
    """Bytes at the peak of a training step, by purpose.

    `weights` includes those of the perceptual term and the averaged generators. `resident` is the
    growth of the process on a CPU, None on a GPU.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    resident: int | None = None

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations

    def __str__(self) -> str:
        text = (
            f"{size(self.total)} at the peak of a step (weights {size(self.weights)}, "
            f"optimizers {size(self.optimizer)}, gradients {size(self.gradients)}, "
            f"activations and temporaries {size(self.activations)})"
        )
        if self.resident is None:
            return text
        return f"{text}; the process grows by about {size(self.resident)}"


def parameter_counts(config: Config) -> dict[str, int]:
    """Return the number of parameters of each network, those of shared blocks separately."""
    with torch.device("meta"):
        unit = networks(config)
    gen_a, gen_b = set(unit.gen_a.parameters()), set(unit.gen_b.parameters())
    dis_a, dis_b = set(unit.dis_a.parameters()), set(unit.dis_b.parameters())
    count = {
        "generator a": gen_a - gen_b,
        "generator b": gen_b - gen_a,
        "shared by the generators": gen_a & gen_b,
        "discriminator a": dis_a - dis_b,
        "discriminator b": dis_b - dis_a,
        "shared by the discriminators": dis_a & dis_b,
    }
    return {name: sum(p.numel() for p in group) for name, group in count.items()}


def forecast(config: Config, device: torch.device) -> Forecast:
    """Return the memory that training will need on a device, without allocating it.

    For a step that is neither compiled nor captured in a graph. Takes a few seconds.
    """
    config = replace(config, compile="off", graphs="off")
    launches = runtime.no_launches(runtime.arch(device))
    with FakeTensorMode(), torch.device(device), launches, LiveBytes(device) as live:
        unit = _channels_last(networks(config))
        perceptual = _channels_last(Perceptual()) if config.vgg_w > 0 else None
        step = TrainStep(unit, config, perceptual)
        modules = [unit] if perceptual is None else [unit, perceptual]
        live.label([t for m in modules for t in _tensors(m)], WEIGHTS)
        for optimizer in (step.dis_opt, step.gen_opt):
            _use_once(optimizer)
            live.label(tree_leaves(list(optimizer.state.values())), OPTIMIZER)
        live.label([p.grad for p in unit.parameters()], GRADIENTS)
        if buffers := step.gradient_buffers():
            live.label(buffers, GRADIENTS)
        else:
            for parameter in unit.parameters():
                parameter.register_post_accumulate_grad_hook(live.label_gradient)
        live.restart()
        step(*_images(config))
    average = _nbytes(_tensors(unit.generator_pair())) if config.ema_decay else 0
    weights, optimizer, gradients, others = live.peak
    resident = None if device.type == "cuda" else live.peak_resident + average
    return Forecast(weights + average, optimizer, gradients, others, resident)


def shortage(expected: Forecast, device: torch.device) -> str | None:
    """Return a warning if the expected memory exceeds a GPU's free memory, else None."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    if expected.total <= free:
        return None
    return (
        f"{size(expected.total)} is more than the {size(free)} of {size(total)} that {device} has "
        "free: lower batch_size, crop_image_height or crop_image_width, or set "
        "checkpoint_activations=true"
    )


def size(count: int) -> str:
    """Return a number of bytes as text in MiB, or in GiB from 1 GiB on."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _channels_last(module: Module) -> Module:
    """Make filters channels_last, as `TrainState` does; `Module.to` fails on fake tensors."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def _use_once(optimizer: Optimizer) -> None:
    """Create gradients and the optimizer's moments, as after a first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()


def _images(config: Config) -> tuple[Tensor, Tensor]:
    samples = config.batch_size * config.accumulate
    x_a, x_b = (
        torch.empty(samples, channels, *config.crop)
        for channels in (config.input_dim_a, config.input_dim_b)
    )
    x_a, x_b = (x.contiguous(memory_format=torch.channels_last) for x in (x_a, x_b))
    return x_a, x_b


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
