"""Winograd's form against oneDNN's convolution on a CPU: ``python -m bench.ops.winograd``.

Milliseconds, medians of turns taken one after the other, of the result y and of the gradients of
image and filters, in float32; the third number is direct / Winograd's. With --rms also the rounding
errors against float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.report.tables import markdown
from fastunit.kernels.conv.aten import convolution
from fastunit.kernels.conv.plan import Plan

# Images, channels, channels of the result, side of the image; 5x5 upsampling: its four phases.
CONVOLUTIONS = ((1, 256, 256, 16), (1, 256, 256, 32), (2, 256, 256, 64), (2, 128, 128, 64))
UPSAMPLING = ((2, 256, 128, 64), (2, 128, 64, 64))
PASSES = {"y": None, "image": [True, False], "filters": [False, True]}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.ops.winograd", description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="default %(default)s")
    parser.add_argument("--rms", action="store_true", help="rounding errors beside the times")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    cases = [(False, *case) for case in CONVOLUTIONS] + [(True, *case) for case in UPSAMPLING]
    with torch.no_grad():
        rows = [_row(*case, args.turns, args.rms) for case in cases]
    print("\n".join(markdown(["images, channels", *PASSES], rows)))
    return 0


def _row(up: bool, n: int, c: int, k: int, side: int, turns: int, rms: bool) -> list[str]:
    taps = 5 if up else 3
    kind, padding = ("upsample", 2) if up else ("conv", 1)
    plan = Plan(kind, 1, padding, 0, "reflect", "none", 0.0, "none", 0.0, 0, "zero", "aten")
    x = torch.randn(n, c, side + 2, side + 2)
    w = torch.randn(k, c, taps, taps) * (c * taps * taps) ** -0.5
    dy = torch.randn(n, k, *[(1 + up) * side] * 2)
    tensors = [t.contiguous(memory_format=torch.channels_last) for t in (x, w, dy)]
    found = [f"{n} of {side}x{side}, {c} to {k}{', 2x' if up else ''}"]
    for mask in PASSES.values():
        direct = _pass(plan, side, mask, tensors, winograd=False)
        ours = _pass(plan, side, mask, tensors, winograd=True)
        theirs, mine = _turns(direct, ours, turns)
        cell = f"{1e3 * theirs:.2f}, {1e3 * mine:.2f}, {theirs / mine:.2f}"
        if rms:
            right = _pass(plan, side, mask, [t.double() for t in tensors], winograd=False)()
            errors = [(run() - right).square().mean().sqrt().item() for run in (direct, ours)]
            cell += f" ({errors[0]:.1e}, {errors[1]:.1e})"
        found.append(cell)
    return found


def _pass(
    plan: Plan, side: int, mask: list[bool] | None, tensors: Sequence[Tensor], *, winograd: bool
) -> Callable[[], Tensor]:
    x, w, dy = tensors
    direct = convolution(plan, (side, side), w[None])
    conv = direct.winograd if winograd else direct
    filters = direct.filters(w, w.dtype)  # which a training step makes once for several calls
    if mask is None:
        return lambda: conv.fprop(x, w if winograd else filters, None)
    place = mask.index(True)
    return lambda: conv.backward(dy, x, w, filters, mask)[place]


def _turns(one: Callable[[], object], other: Callable[[], object], turns: int) -> list[float]:
    """Return the median seconds of both."""
    found: list[list[float]] = [[], []]
    for turn in range(turns + 2):  # the first two warm up
        for times, run in zip(found, (one, other), strict=True):
            start = time.perf_counter()
            run()
            if turn > 1:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in found]


if __name__ == "__main__":
    raise SystemExit(main())
