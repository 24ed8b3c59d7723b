"""Our kernels compiled: from a recorded launch to its bytes, FLOPs and resident programs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import triton

from bench.gpu.compile import Variant, resources
from bench.model.gpu import Gpu
from bench.model.ir import Kernel
from bench.model.trace import Event

# Pointers from which a kernel reaches other tensors than the one it is given: it reads a value
# there for each of so many that it stores at another pointer.
REACHING = {"pack_kernel": ("w_ptr", "packed_ptr", 2)}  # both layouts

# Arguments of which masks let each value be loaded once: a border's corrections, which few tiles
# have. Other masked loads count as moved.
ONCE = {("conv_gemm_kernel", "border_ptr")}
# Pointers that are masked whole where a scalar is 0.
SWITCHES = {
    "backward_reduce_kernel": {"more_ptr": "adds"},
    "backward_apply_kernel": {"more_ptr": "adds", "dresidual_ptr": "keeps"},
}


@dataclass(frozen=True)
class Cost:
    """What a kernel moves and computes; of an ATen kernel the last five are unknown.

    `resident` programs fit on a multiprocessor at a time, of `programs`; `area` is the
    accumulators of one, 0 for a kernel without products.
    """

    bytes_in: int
    bytes_out: int
    l2_bytes: int
    flops: int
    programs: int = 0
    resident: int = 0
    registers: int = 0
    shared: int = 0
    area: int = 0


@dataclass(frozen=True)
class Compiled:
    kernel: Kernel
    registers: int
    stack: int
    shared: int


class Compiler:
    """Compiles each variant once; Triton keeps the results in its cache folder."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.found: dict[tuple, Compiled] = {}

    def prepare(self, events: Sequence[Event]) -> None:
        """Compile all variants among the events, on all cores."""
        new = {e.variant.key: e.variant for e in events if e.variant is not None}
        new = {key: variant for key, variant in new.items() if key not in self.found}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self.found |= zip(new, pool.map(_compile, new.values()), strict=True)

    def cost(self, event: Event) -> Cost:
        """Return the cost of a kernel, ours or ATen's."""
        work = event.work
        if event.variant is None or event.arguments is None:
            read, written = (sum(p.bytes for p in parts) for parts in (work.reads, work.writes))
            return Cost(read, written, read + written, work.flops)
        compiled = self.found[event.variant.key]
        counts = compiled.kernel.count(event.arguments, event.grid)
        whole = {name: part.bytes for name, part in event.arguments[""].items()}
        for pointer, switch in SWITCHES.get(work.name, {}).items():
            if not event.arguments[switch]:
                counts.loaded[pointer] = counts.stored[pointer] = 0
        if reach := REACHING.get(work.name):
            source, target, times = reach
            stored = min(counts.stored[target], whole[target]) // times
            whole[source] = stored * _width(event.variant, source) // _width(event.variant, target)

        def moved(amounts: dict[str | None, int]) -> int:
            """Each byte once, at most: what is read again comes from L2."""
            return sum(min(n, whole.get(name or "", n)) for name, n in amounts.items())

        bytes_in, bytes_out = moved(counts.loaded), moved(counts.stored)
        l2_bytes = bytes_in + bytes_out
        if counts.flops:
            loaded = {
                name: min(n, whole[name]) if (work.name, name) in ONCE else n
                for name, n in counts.loaded.items()
            }
            l2_bytes = sum(loaded.values()) + sum(counts.stored.values())
        warps = event.variant.options.num_warps
        return Cost(
            bytes_in, bytes_out, l2_bytes, counts.flops, math.prod(event.grid),
            resident(self.gpu, compiled.registers, compiled.shared, warps),
            compiled.registers, compiled.shared, counts.area,
        )  # fmt: skip


def resident(gpu: Gpu, registers: int, shared: int, warps: int) -> int:
    """Return how many programs fit on a multiprocessor at a time."""
    of_warp = -(-registers * 32 // gpu.register_unit) * gpu.register_unit
    limits = (
        gpu.programs,
        gpu.warps // warps,
        gpu.registers // max(of_warp * warps, 1),
        gpu.shared_bytes // (shared + gpu.shared_reserved),
    )
    return max(1, min(limits))


def _compile(variant: Variant) -> Compiled:
    binary = triton.compile(variant.source, target=variant.target, options=variant.options.__dict__)
    kernel = Kernel(str(binary.asm["ttir"]))
    return Compiled(kernel, *resources(binary.asm["cubin"]), binary.metadata.shared)


def _width(variant: Variant, argument: str) -> int:
    """Return the bytes of what a pointer points to."""
    return int(variant.source.signature[argument].strip("*abcdefghijklmnopqrstuvwxyz")) // 8
