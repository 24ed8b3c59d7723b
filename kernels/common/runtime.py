"""Where an operation runs, and the one place that launches Triton kernels.

Every operation takes ``impl``:

- "triton": our kernels. With TRITON_INTERPRET=1 in the environment before Python starts, they take
  CPU tensors and run in Triton's interpreter.
- "aten": the same operation on PyTorch's kernels, on any device.
- "plain": a composition of PyTorch's operations, which saves more for backward but has all
  derivatives and transforms.
- "auto": Triton for CUDA tensors of a dtype and a GPU the kernels support, ATen for all others; in
  eager mode on a CPU, "plain" or parts of it for images so small that calls outweigh arithmetic.
  "plain" too where the others lack a derivative or a transform; see `derivatives`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from triton import knobs

from fastunit.kernels.common import optional_triton
from fastunit.kernels.common.checks import AUTOCAST

Impl = Literal["auto", "triton", "aten", "plain"]
IMPLS = get_args(Impl)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRET: bool = knobs.runtime.interpret
OLDEST = 80  # Ampere: bf16 and tf32 tensor cores

_default = os.environ.get("FASTUNIT_IMPL", "auto")


@dataclass(frozen=True)
class Launch:
    """One recorded launch: what `triton.compile` needs, and the grid."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int


@dataclass
class _Recorder:
    arch: int
    take: Callable[[Launch], None]


_recorder: _Recorder | None = None


@contextmanager
def default_impl(impl: str) -> Iterator[None]:
    """Let ``impl="auto"`` mean `impl` inside the block; FASTUNIT_IMPL sets it from outside."""
    global _default
    _check(impl)
    before, _default = _default, impl
    try:
        yield
    finally:
        _default = before


def choose_impl(impl: str, x: Tensor) -> str:
    """Return "triton", "aten" or "plain" for an operation on x.

    Raises:
        ValueError: impl is unknown, or "triton" was asked for where it cannot run.
    """
    _check(impl)
    if impl == "auto":
        impl = _default
        _check(impl)
    if impl == "auto":
        return "triton" if x.is_cuda and _obstacle(x) is None else "aten"
    if impl == "triton" and (obstacle := _obstacle(x)) is not None:
        raise ValueError(f"impl='triton' {obstacle}; use impl='auto' or 'aten'")
    return impl


def is_auto(impl: str) -> bool:
    """Return whether neither a call nor `default_impl` names an implementation."""
    return impl == _default == "auto"


def autocast(x: Tensor) -> Tensor:
    """Return x in autocast's dtype where autocast is on, as PyTorch's own convolutions do."""
    kind = x.device.type
    if x.dtype == torch.float64 or kind not in AUTOCAST or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context for an operator on x, whose own products keep the dtypes it gave them."""
    kind = x.device.type
    active = kind in AUTOCAST and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()


def _check(impl: str) -> None:
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} must be one of {', '.join(IMPLS)}")


def _obstacle(x: Tensor) -> str | None:
    """Return why the kernels cannot take x, or None."""
    if not optional_triton.AVAILABLE:
        return "needs the package triton, which is not installed (pip install triton, on Linux)"
    if x.dtype not in DTYPES:
        return f"takes float16, bfloat16 and float32, not {x.dtype}"
    if x.is_cuda:
        found = arch(x.device)
        return None if found >= OLDEST else f"needs compute capability 8.0, not {found / 10}"
    if x.device.type == "meta" or (x.device.type == "cpu" and (INTERPRET or _recorder)):
        return None
    return f"needs CUDA tensors, or TRITON_INTERPRET=1 for the interpreter, not {x.device}"


def arch(device: torch.device) -> int:
    """Return the compute capability times ten: 90 for an H100. The interpreter counts as 90."""
    if _recorder is not None:
        return _recorder.arch
    return _capability(device) if device.type == "cuda" else 90


def recording() -> bool:
    """Return whether launches are being recorded instead of run."""
    return _recorder is not None


@functools.cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up; `triton.cdiv` is typed for kernels, not for launchers."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n, for n of 1 or more."""
    return 1 << (n - 1).bit_length()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    **constexprs: Any,
) -> None:
    """Launch on the device of the first argument, a tensor; an empty grid launches nothing."""
    if 0 in grid:
        return
    if _recorder is not None:
        _recorder.take(Launch(kernel, grid, args, constexprs, num_warps, num_stages))
        return
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)


@contextmanager
def recorded_launches(arch: int) -> Iterator[list[Launch]]:
    """Record launches instead of running them, as if on a GPU of that compute capability.

    Takes CPU tensors; results are uninitialised memory. For `triton.compile` without a GPU.
    """
    global _recorder
    found: list[Launch] = []
    before, _recorder = _recorder, _Recorder(arch, found.append)
    try:
        yield found
    finally:
        _recorder = before
