"""Programmatic dependent launch: a kernel is launched while the one before it still ends.

Its programs are then on the multiprocessors when the stores of the kernel before become visible,
and the time of a launch is hidden. FASTUNIT_PDL=1, read once at import, asks for it. It is off by
default, since no GPU has measured it; GPUs before compute capability 9.0 have none.

Every kernel waits before it touches global memory. The wait ends when all of the kernel before has
ended and its stores are visible; that kernel ends after its own wait, and so on: what any earlier
kernel of the stream wrote is there, and what it read may be overwritten. One kernel without a wait
would break this for those after it. PyTorch's kernels start when all before them has ended, as
they do without the option.

After its wait a program lets the next kernel start. That takes effect once all programs have come
so far or ended: programs of the next kernel, which only wait, keep no multiprocessor from this one.

The wait is the first statement of each kernel: behind a product's indices it took up to 30 more
registers a thread (sm_90), which is a program less on a multiprocessor.
"""

# Kernels call kernels, and `triton.jit` is typed as if these calls never returned.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import functools
import warnings
from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fastunit.kernels.common.environment import is_on

ON = is_on("FASTUNIT_PDL") and not knobs.runtime.interpret
OLDEST = 90  # Hopper


@functools.cache
def options(arch: int) -> dict[str, bool]:
    """Return the launch options that ask for it on a GPU of that compute capability times ten."""
    if arch >= OLDEST:
        return {"launch_pdl": True}
    warnings.warn(
        f"FASTUNIT_PDL=1 needs compute capability {OLDEST / 10}, not {arch / 10}: kernels are "
        "launched as without it",
        stacklevel=2,
    )
    return {}


def _option(_semantic: Any = None) -> Any:
    """Return whether the kernel that is compiled is launched with the option, a constexpr."""
    return tl.constexpr(bool(getattr(_semantic.builder.options, "launch_pdl", False)))


# The interpreter has no options, and does not call what a compiler builds in.
_is_asked_for: Any = bool if knobs.runtime.interpret else tl.core.builtin(_option)


@triton.jit
def wait_for_previous():
    """Wait until the kernel before has ended, then let the next one start.

    The code depends on the launch's option, not on the variable: both always agree, and without
    the option there is none.
    """
    if _is_asked_for():
        gdc_wait()
        gdc_launch_dependents()
