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

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastunit.config import Config
from fastunit.kernels.common import runtime
from fastunit.models.perceptual import Perceptual
from fastunit.models.unit import networks
from fastunit.training.step import TrainStep

GLIBC_MAPS_FROM = 32 * 2**20  # bytes; less comes from the heap (the limit of M_MMAP_THRESHOLD)
HEAP_GROWTH = 1.25  # heap size / bytes in use; 1.2 to 1.4 were measured (glibc 2.36)
CUDA_BLOCK = 512  # bytes; PyTorch's allocator rounds up to multiples
WEIGHTS, OPTIMIZER, GRADIENTS, OTHER = range(4)

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
    with FakeTensorMode(), torch.device(device), launches, _LiveBytes(device) as live:
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


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages created while it is active, and their peak."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self._block = device, CUDA_BLOCK if device.type == "cuda" else 1
        self._known: dict[int, tuple[int, int]] = {}  # storage -> bytes, purpose
        self._live = [0, 0, 0, 0]
        self._heap = 0
        self.restart()

    def restart(self) -> None:
        """Reset the peak to the current bytes."""
        self.peak, self.peak_resident, self._peak_heap = [0, 0, 0, 0], 0, 0
        self._note_peak()

    def label(self, tensors: Iterable[Any], what: int) -> None:
        """Set the purpose of the tensors' storages, which is OTHER until then."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else None
            if key in self._known:
                count, before = self._known[key]
                self._known[key] = count, what
                self._live[before] -= count
                self._live[what] += count

    def label_gradient(self, parameter: Tensor) -> None:
        """Label the parameter's gradient as one."""
        self.label([parameter.grad], GRADIENTS)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func.namespace == "fastunit":
            result = self._run_inside(func, *args)
        else:
            result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _run_inside(self, func: Any, *args: Any) -> Any:
        """Run a fused operation's body so that its temporaries are counted; launches no kernel."""
        with self:
            return _body(func)(*args)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        count = -(-storage.nbytes() // self._block) * self._block
        self._known[key] = count, OTHER
        self._live[OTHER] += count
        if count < GLIBC_MAPS_FROM:
            self._heap += count
        self._note_peak()
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        count, what = self._known.pop(key)
        self._live[what] -= count
        if count < GLIBC_MAPS_FROM:
            self._heap -= count

    def _note_peak(self) -> None:
        total = sum(self._live)
        if total > sum(self.peak):
            self.peak = list(self._live)
        self._peak_heap = max(self._peak_heap, self._heap)  # a heap with gaps does not shrink
        resident = total - self._heap + round(HEAP_GROWTH * self._peak_heap)
        self.peak_resident = max(self.peak_resident, resident)


def _body(func: Any) -> Callable[..., Any]:
    """Return the implementation of one of fastunit's operators, the same for all devices."""
    kernel = torch.library.get_kernel(func, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *args: kernel.call_boxed(keys, *args)


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
