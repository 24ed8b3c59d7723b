"""What other projects' networks launch on a GPU before and after `fastunit.accelerate`.

``python -m bench.model.accelerated`` prints a table: forward and backward of one image in bf16
autocast, channels_last and with float32 weights, recorded as `bench.model.trace` describes. Beside
the network as it is and as it is rewritten stands the network with torch.compile, an estimate by
the rule of `bench.model.fusion`. Counts, not times: no GPU is needed, and none was asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bench.model.fusion import fused
from bench.model.gpu import H100
from bench.model.kernels import Compiler
from bench.model.trace import Event, Trace
from bench.ops.other_networks import CASES, tensors
from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.fusion import rules
from fastunit.fusion.report import Report
from fastunit.fusion.rewrite import rewrite
from fastunit.kernels.common import runtime

Run = Callable[[], Iterable[Tensor]]


class Count(NamedTuple):
    """Launches of one forward and backward pass, and the bytes that they read and write."""

    launches: int
    gb: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model.accelerated", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--size", type=int, default=256, help="height and width; %(default)s")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in CASES]:
        raise UserError(f"no network {unknown[0]!r}; known: {', '.join(CASES)}")
    if runtime.INTERPRET:
        raise UserError("TRITON_INTERPRET=1 leaves nothing to record; unset it")
    print("| network | launches | accelerated | torch.compile | GB | accelerated | torch.compile |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for name in args.names or CASES:
        counts = measure(CASES[name](), args.size)
        numbers = *(str(c.launches) for c in counts), *(f"{c.gb:.2f}" for c in counts)
        print("| " + " | ".join((name, *numbers)) + " |", flush=True)
    return 0


def measure(model: nn.Module, size: int) -> tuple[Count, Count, Count]:
    """Return the counts of a network as it is, accelerated, and with torch.compile."""
    model = model.to(memory_format=torch.channels_last)
    x = torch.empty(1, 3, size, size).to(memory_format=torch.channels_last).requires_grad_()
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    own = record(lambda: tensors(model(x)), leaves)
    compiled = fused(own, lambda event: event.work.gemm is None)
    return count(own), count(record(rewritten(model, x), leaves)), count(compiled)


def rewritten(model: nn.Module, x: Tensor) -> Run:
    """Return a function that runs a network's graph as it is rewritten for a GPU.

    Dynamo traces nothing while launches are recorded: the graph is made before.
    """
    made: list[tuple[GraphModule, Any]] = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        rewrite(graph, Report())

        def run(*given: Any) -> Any:
            made.append((graph, given))
            return graph(*given)

        return run

    torch._dynamo.reset()
    with mock.patch.object(rules, "loss", rules.on_gpu), _bf16():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(x)
    ((graph, given),) = made
    return lambda: tensors(graph(*given))


def record(run: Run, leaves: Sequence[Tensor]) -> list[Event]:
    """Return the launches of a forward and backward pass to these tensors."""
    with Trace(H100) as trace:
        with _bf16():
            results = list(run())
        torch.autograd.grad(results, leaves, [torch.empty_like(y) for y in results])
    return trace.events


def count(events: Sequence[Event]) -> Count:
    compiler = Compiler(H100)
    compiler.prepare(list(events))
    costs = [compiler.cost(event) for event in events]
    return Count(len(events), sum(cost.bytes_in + cost.bytes_out for cost in costs) / 1e9)


def _bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
