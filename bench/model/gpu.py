"""The GPU of the step's model: its sizes, and the rates that turn counts into time.

These are all constants of `bench.model.step_cost`. None was measured by this project: `origin`
says where each comes from. `read` replaces any of them by measured ones, from a JSON file with an
object of these names.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from fastunit.common.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A GPU. Sizes are exact, from NVIDIA's documentation; rates are assumptions.

    Attributes:
        origin: where the rates come from.
        multiprocessors: of the GPU; the other sizes are of one multiprocessor.
        registers: 32-bit registers.
        register_unit: registers of a warp are allocated in multiples of this.
        shared_bytes: shared memory.
        shared_reserved: bytes of shared memory that every program takes besides its own.
        warps: resident at most.
        programs: resident at most.
        memory_tb_per_s: device memory, read plus written.
        l2_tb_per_s: from L2 to the multiprocessors, all together.
        gap_us: from the end of a kernel to the next one's first program, in a CUDA graph.
        shortest_us: no kernel takes less.
        tensor_tflops: products in bf16 on all multiprocessors while enough of them are resident.
        library_tflops: as tensor_tflops, of cuDNN's and cuBLAS's kernels.
        library_l2_share: the share of their loads that L2 has to serve: clusters share the rest.
        wide_area: accumulators that must be in flight on a multiprocessor to reach that rate.
        lone_share: the share of the rate that is left with none of them but one small tile.
        parameter_tensors: tensors of one multi-tensor launch, by lists: PyTorch's table.
        parameter_chunk: values of a chunk of such a launch; blocks_per_launch of them at most.
        blocks_per_launch: see parameter_chunk.
    """

    name: str
    arch: int
    origin: str
    multiprocessors: int
    registers: int = 65536
    register_unit: int = 256
    shared_bytes: int = 228 << 10
    shared_reserved: int = 1 << 10
    warps: int = 64
    programs: int = 32
    memory_tb_per_s: float = 2.9
    l2_tb_per_s: float = 7.0
    gap_us: float = 0.9
    shortest_us: float = 1.8
    tensor_tflops: float = 600.0
    library_tflops: float = 750.0
    library_l2_share: float = 0.5
    wide_area: int = 2 * 128 * 128
    lone_share: float = 0.5
    parameter_tensors: dict[int, int] = field(
        default_factory=lambda: {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
    )
    parameter_chunk: int = 65536
    blocks_per_launch: int = 320

    def share_of_rate(self, area: float) -> float:
        """Return the share of `tensor_tflops` with this many accumulators in flight."""
        return min(1.0, self.lone_share + (1 - self.lone_share) * area / self.wide_area)


H100 = Gpu(
    "H100 SXM",
    90,
    "bandwidths, gap and shortest kernel: assumptions of a review of commit fbe9b75; "
    "tensor_tflops, library_*: set so that products take what the review says, ours and others'; "
    "lone_share: the review's '50 % more time' for a second wave of one program; "
    "parameter_*: ATen/native/cuda/MultiTensorApply.cuh",
    132,
)
GPUS = {H100.arch: H100}


def read(arch: int, path: str | None = None) -> Gpu:
    """Return the GPU of an architecture, with the constants of a JSON file in place of ours.

    Raises:
        UserError: the file cannot be read, or holds an unknown name or a value that is no number.
    """
    gpu = GPUS[arch]
    if path is None:
        return gpu
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--constants {path}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--constants {path}: must hold an object of names and numbers")
    numbers = {f.name for f in dataclasses.fields(Gpu) if f.type in ("int", "float")} - {"arch"}
    for name, value in found.items():
        if name not in numbers | {"origin", "name"}:
            raise UserError(f"--constants {path}: no constant {name!r}; known: {sorted(numbers)}")
        if name in numbers and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"--constants {path}: {name}={value!r} must be a number")
    return dataclasses.replace(gpu, **{"origin": path, **found})
