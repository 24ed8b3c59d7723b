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
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from triton import knobs

from fastunit.kernels.common import branches, dependent, optional_triton
from fastunit.kernels.common.checks import AUTOCAST

Impl = Literal["auto", "triton", "aten", "plain"]
IMPLS = get_args(Impl)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRET: bool = knobs.runtime.interpret
OLDEST = 80  # Ampere: bf16 and tf32 tensor cores
# Arguments of the kernels, by name, whose values no load's width depends on: counts, sizes, and
# offsets in units of a load (_v). Triton compiles a kernel once for all of them, not anew for 1
# and for multiples of 16. Channels and strides are left out: from these it knows that loads are
# wide.
COUNTS = (
    *("H", "W", "P", "Q", "R", "pixels", "width", "columns", "halo", "lead", "crop", "copies"),
    *("slack", "samples", "length", "splits", "blocks", "groups", "S", "C_dw", "K_dw"),
    *("add", "add_dw", "add_db", "adds", "sums", "merges", "keeps", "normed", "reflects"),
    "pitch_dy_v",
    *("tiles_k", "tiles_x", "tiles_dy", "stride_g", "stride_k", "stride_c", "stride_r", "stride_s"),
    *("tiles", "tiles_c", "tiles_m", "tiles_n", "windows", "window_columns", "split"),
    *("samples_per_gamma", "samples_per_beta", "samples_per_group", "pixels_per_group"),
    *("samples_per_row", "wanted", "stride_b", "stride_beta", "stride_gamma", "stride_shift"),
    *("slope_step", "run_v", "shift_v", "pitch_v", "K_v", "stride_xn_v", "stride_row_v"),
    *("stride_column_v", "stride_window_row_v", "stride_window_v", "stride_tap_row_v"),
)

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
    multiprocessors: int | None
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
    """Return "triton", "aten" or "plain" for an operation on x; raises as `choose`."""
    return choose(impl, x)[0]


def choose(impl: str, x: Tensor) -> tuple[str, bool]:
    """Return "triton", "aten" or "plain" for an operation on x, and whether impl `is_auto`.

    Raises:
        ValueError: impl is unknown, or "triton" was asked for where it cannot run.
    """
    if impl == "auto":
        impl = _default
    if impl == "auto":
        return "triton" if x.is_cuda and _obstacle(x) is None else "aten", True
    _check(impl)
    if impl == "triton" and (obstacle := _obstacle(x)) is not None:
        raise ValueError(f"impl='triton' {obstacle}; use impl='auto' or 'aten'")
    return impl, False


def is_auto(impl: str) -> bool:
    """Return whether neither a call nor `default_impl` names an implementation."""
    return impl == _default == "auto"


def autocast(x: Tensor) -> Tensor:
    """Return x in autocast's dtype where autocast is on, as PyTorch's own convolutions do."""
    if x.dtype == torch.float64 or not autocasts(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def autocasts(x: Tensor) -> bool:
    """Return whether autocast is on for x's device."""
    kind = x.device.type
    return kind in AUTOCAST and torch.is_autocast_enabled(kind)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context for an operator on x, whose own products keep the dtypes it gave them."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


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
    if device.type != "cuda":
        return 90
    found = _properties(device)
    return 10 * found.major + found.minor


def multiprocessors(device: torch.device) -> int | None:
    """Return the GPU's multiprocessors; None for the usual number of its architecture."""
    if _recorder is not None:
        return _recorder.multiprocessors
    return _properties(device).multi_processor_count if device.type == "cuda" else None


def recording() -> bool:
    """Return whether launches are being recorded instead of run."""
    return _recorder is not None


@functools.cache
def _properties(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)


# Counters of a call; calls until they are used again; calls likewise of a branch's stream.
_SLOT, _SLOTS, _BRANCH_SLOTS = 4096, 192, 4
_turn = itertools.count()


def counters(count: int, device: torch.device) -> Tensor:
    """Return int32 zeros [count] for a launch, whose kernel must leave zeros behind.

    On a GPU they are cut from a buffer, so that no launch fills them. Kernels on other streams have
    others: a slice comes up again after 192 calls, of which a launch makes up to two, for its merge
    and for its rows. Streams of a CUDA graph's branches, where more may come between, have slices
    of their own.
    """
    if recording():
        return torch.empty(count, dtype=torch.int32, device=device)
    if device.type != "cuda" or count > _SLOT:
        return torch.zeros(count, dtype=torch.int32, device=device)
    turn = next(_turn)
    place = turn % _SLOTS
    if branches.ON and (lane := branches.lane(device)):
        place = _SLOTS + lane * _BRANCH_SLOTS + turn % _BRANCH_SLOTS
    return _zeros(device)[place * _SLOT :][:count]


@functools.cache
def _zeros(device: torch.device) -> Tensor:
    slots = _SLOTS + branches.LANES * _BRANCH_SLOTS
    return torch.zeros(slots * _SLOT, dtype=torch.int32, device=device)


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
    if dependent.ON:
        constexprs |= dependent.options(arch(args[0].device))
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constexprs)


@contextmanager
def recorded_launches(arch: int, multiprocessors: int | None = None) -> Iterator[list[Launch]]:
    """Record launches instead of running them, as if on a GPU of that compute capability.

    Takes CPU tensors; results are uninitialised memory. For `triton.compile` without a GPU, which
    has the multiprocessors that are usual for its architecture unless their number is given.
    """
    found: list[Launch] = []
    with _recording(_Recorder(arch, multiprocessors, found.append)):
        yield found


def no_launches(arch: int) -> AbstractContextManager[None]:
    """Launch nothing, as if on a GPU of that compute capability; as `recorded_launches`."""
    return _recording(_Recorder(arch, None, lambda launch: None))


@contextmanager
def _recording(recorder: _Recorder) -> Iterator[None]:
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before
