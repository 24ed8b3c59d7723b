"""Every Triton kernel on small odd shapes: ``python -m bench.gpu.every_kernel``.

For compute-sanitizer, which slows kernels down many times, in one process. Each case runs in each
of `PRECISIONS`, and its results must be finite; its name is printed when the GPU has finished it.
``--list`` prints the kernels that are launched, and needs no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.kernels import (
    conv_gemm,
    conv_norm_act,
    conv_transpose,
    instance_norm_act,
    norm_act,
    reparameterize,
    upsample_conv,
)
from fastunit.kernels.common import runtime
from fastunit.kernels.conv.packed import Block, PackedFilters

ARCH = 90  # of the recorded launches
# dtype, and whether float32 is computed in tf32.
PRECISIONS = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
}


class Case(NamedTuple):
    """An operation, the shapes of its tensor arguments by name, and its options."""

    operation: Callable[..., Tensor | tuple[Tensor, ...]]
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]
    channels_last: bool = False


def _packed(w: Tensor, impl: str) -> Tensor:
    """Return w times the mean of its layouts as the kernel packs them; elsewhere times one."""
    packed = PackedFilters([Block((w.detach(),), "conv", 2)], w.dtype)
    if impl == "triton":
        packed.write()
    else:
        packed.buffer.fill_(1)
    return w * torch.cat([layout.flatten() for layout in packed.filters[0][1:3]]).mean()


_ROWS = {"b": (2, 20), "gamma": (2, 20), "beta": (2, 20)}
_REFLECT = {"pad_mode": "reflect"}
CASES = {
    "residual block": Case(
        conv_norm_act,
        {"x": (2, 20, 17, 31), "w": (20, 20, 3, 3), "b": (20,), "residual": (2, 20, 17, 31)},
        {"padding": 1, "norm": "in", "act": "relu", "halo": 1, "halo_mode": "reflect", **_REFLECT},
    ),
    "two domains": Case(
        conv_norm_act,
        {"x": (4, 20, 17, 31), "w": (2, 20, 20, 3, 3), **_ROWS},
        {"padding": 1, "norm": "ln", "act": "relu", "pad_mode": "replicate"},
    ),
    "image": Case(
        conv_norm_act,
        {"x": (1, 3, 19, 33), "w": (70, 3, 7, 7)},
        {"padding": 3, "norm": "in", "act": "selu", **_REFLECT},
    ),
    "strided": Case(
        conv_norm_act,
        {"x": (3, 12, 17, 31), "w": (70, 12, 4, 4), "b": (70,)},
        {"stride": 2, "padding": 1, "act": "lrelu"},
    ),
    "to an image": Case(
        conv_gemm, {"x": (1, 24, 23, 37), "w": (3, 24, 7, 7), "b": (3,)}, {"act": "tanh"}
    ),
    "scores of two domains": Case(
        conv_norm_act,
        {"x": (4, 24, 9, 5), "w": (2, 1, 24, 1, 1), "b": (2, 1)},
        {"act": "lrelu"},
        channels_last=True,
    ),
    "upsampling": Case(
        upsample_conv,
        {"x": (4, 20, 9, 13), "w": (2, 20, 20, 5, 5), **_ROWS},
        {"norm": "ln", "act": "relu", **_REFLECT},
    ),
    "transposed": Case(
        conv_transpose,
        {"x": (2, 20, 9, 13), "w": (20, 12, 3, 3), "b": (12,)},
        {"stride": 2, "padding": 1, "output_padding": 1, "norm": "in", "act": "relu"},
    ),
    "norm": Case(
        norm_act,
        {
            **{"x": (2, 20, 17, 31), "gamma": (20,), "beta": (20,), "slope": (20,)},
            "residual": (2, 20, 17, 31),
        },
        {"norm": "ln", "act": "prelu", "halo": 2, "pad_mode": "reflect"},
    ),
    "instance norm": Case(instance_norm_act, {"x": (2, 130, 65, 33)}, {"act": "lrelu"}),
    "many tiles": Case(instance_norm_act, {"x": (1, 40, 131, 131)}, {"act": "lrelu"}),
    "packed filters": Case(_packed, {"w": (20, 12, 4, 4)}, {}),
    "sample": Case(reparameterize, {"mu": (3, 20, 17, 31)}, {}),
    "sample, learned": Case(
        reparameterize,
        {"mu": (3, 20, 17, 31), "raw_sigma": (3, 20, 17, 31)},
        {"sigma": "softplus", "kl": "normal"},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.every_kernel", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the kernels; run none")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(sorted({name(launch) for launch in launches()})))
        return 0
    if not torch.cuda.is_available():
        raise UserError(
            "bench/gpu/every_kernel.py needs an NVIDIA GPU that PyTorch can use; --list does not"
        )
    for title, finite in run(torch.device("cuda")):
        torch.cuda.synchronize()
        print(title, flush=True)
        if not finite:
            print(f"error: {title}: a result or gradient is not finite", file=sys.stderr)
            return 1
    return 0


def run(device: torch.device) -> Iterator[tuple[str, bool]]:
    """Run each case in each precision; yield its name and whether all its numbers are finite."""
    for precision, (dtype, tf32) in PRECISIONS.items():
        with _tf32(tf32):
            for case_name, case in CASES.items():
                found = results(case, dtype, device)
                yield f"{case_name}, {precision}", all(bool(y.isfinite().all()) for y in found)


def results(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return the results of the case's operation for random tensors, and all gradients."""
    leaves = {}
    for tensor_name, shape in case.shapes.items():
        value = torch.randn(shape, device=device)
        if tensor_name == "w":
            value /= value[0].numel() ** 0.5
        if case.channels_last and value.dim() == 4:
            value = value.to(memory_format=torch.channels_last)
        leaves[tensor_name] = value.to(dtype).requires_grad_()
    y = case.operation(**leaves, **case.options, impl="triton")
    found = list(y) if isinstance(y, tuple) else [y]
    upstream = [torch.randn_like(value) for value in found]
    gradients = torch.autograd.grad(found, list(leaves.values()), upstream)
    return [value.detach() for value in (*found, *gradients)]


def launches() -> list[runtime.Launch]:
    """Return every launch of `run`, recorded without launching it."""
    with runtime.recorded_launches(ARCH) as found:
        for _ in run(torch.device("cpu")):
            pass
    return found


def name(launch: runtime.Launch) -> str:
    """Return the name of the kernel that is launched."""
    return launch.kernel.fn.__name__


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


if __name__ == "__main__":
    sys.exit(cli.guard(main))
