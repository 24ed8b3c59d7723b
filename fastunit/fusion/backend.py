"""`torch.compile(model, backend="fastunit")`: fused operations, and inductor for the rest.

The name is an entry point of the installed package; `register` makes it known from a checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fastunit.fusion.report import Report
from fastunit.fusion.rewrite import rewrite

NAME = "fastunit"


def compile(module: GraphModule, example_inputs: list[Tensor], **options: Any) -> Any:
    """Rewrite a graph and hand it to inductor; `torch.compile` calls this.

    Args:
        module: dynamo's graph, changed in place.
        example_inputs: as dynamo passes them.
        **options: inductor's, from ``torch.compile(..., options=...)`` or ``mode=...``.

    Returns:
        The compiled function.
    """
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    mode = options.get("mode")
    settings = options.get("options") if mode is None else list_mode_options(mode)
    return compile_fx(rewrite(module, Report()), example_inputs, config_patches=settings)


def eager(report: Report) -> Callable[..., Any]:
    """Return a backend whose rewritten graphs run as Python; it adds to the report."""

    def backend(module: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        before = len(report.fused)
        forward = rewrite(module, report).forward
        if len(report.fused) == before:
            return forward

        def run(*inputs: Any) -> Any:
            report.runs += 1
            return forward(*inputs)

        return run

    return backend


def register() -> None:
    """Make the backend known to `torch.compile` by its name, where no installation has."""
    from torch._dynamo import list_backends, register_backend

    if NAME not in list_backends(exclude_tags=()):
        register_backend(compile, name=NAME)
