"""The tables of docs/kernels.md for CPUs: ``python -m bench.ops.call_cost [--repeat 7]``.

What a call costs where the arithmetic is small (a block and an instance norm of 16 channels on 4x4
pixels), and the filters' gradient over few pixels, each beside PyTorch's own in the same run. CPU
time of one thread, the fastest of some repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.report.tables import markdown
from fastunit.kernels import instance_norm_act
from fastunit.kernels.conv.aten import filter_gradient
from fastunit.models.layers import Conv2dBlock, moved

CALLS = 200  # in a repetition of the small operations
# Channels in and out, side of the padded image: 4x4 filters of stride 2, two images.
GRADIENTS = ((128, 256, 18), (128, 256, 10), (256, 512, 34), (256, 512, 10))


class _NormAct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_act(x, act="relu")


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.ops.call_cost", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="repetitions; default %(default)s")
    repeat = parser.parse_args(argv).repeat
    torch.set_num_threads(1)
    head = ["microseconds of a call", "forward", "with backward"]
    print("\n".join(markdown(head, _calls(repeat))), end="\n\n")
    head = ["milliseconds; channels, side", "PyTorch", "one product", "PyTorch / ours"]
    print("\n".join(markdown(head, _gradients(repeat))))
    return 0


def _calls(repeat: int) -> list[list[str]]:
    block = Conv2dBlock(16, 16, 3, 1, 1, norm="in", pad_type="reflect")
    modules = nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16), nn.ReLU()
    networks = {
        "3x3 block": block,
        "PyTorch's four modules": nn.Sequential(*modules),
        "instance norm, ReLU": _NormAct(),
        "PyTorch's two modules": nn.Sequential(nn.InstanceNorm2d(16), nn.ReLU()),
    }
    x = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    rows = []
    for name, network in networks.items():
        moved(network)
        with torch.no_grad():
            forward = _fastest(lambda n=network: n(x), repeat, CALLS)
        both = _fastest(lambda n=network: n(x).sum().backward(), repeat, CALLS)
        rows.append([name, f"{1e6 * forward:.0f}", f"{1e6 * both:.0f}"])
    return rows


def _gradients(repeat: int) -> list[list[str]]:
    rows, mask = [], [False, True, False]
    for channels, filters, side in GRADIENTS:
        out = (side - 4) // 2 + 1
        x, dy = torch.randn(2, channels, side, side), torch.randn(2, filters, out, out)
        w = torch.empty(filters, channels, 4, 4)
        x, dy, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, w))
        given = (dy, x, w, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1, mask)
        theirs = _fastest(lambda a=given: torch.ops.aten.convolution_backward(*a), repeat, 5)
        mine = _fastest(lambda a=(dy, x, w.shape[1:], 2): filter_gradient(*a), repeat, 5)
        name = f"{channels} to {filters}, {out}x{out}"
        rows.append([name, f"{1e3 * theirs:.2f}", f"{1e3 * mine:.2f}", f"{theirs / mine:.2f}"])
    return rows


def _fastest(run: Callable[[], object], repeat: int, calls: int) -> float:
    """Return the seconds of CPU time of a call, in the fastest repetition."""
    found = []
    for _ in range(repeat + 1):  # the first warms up
        start = time.thread_time()
        for _ in range(calls):
            run()
        found.append((time.thread_time() - start) / calls)
    return min(found[1:])


if __name__ == "__main__":
    raise SystemExit(main())
