"""Replaces the chains of a graph by fused operations."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from fastunit.fusion import hazards, rules
from fastunit.fusion.chains import Chain, Finder, Unfit
from fastunit.fusion.operations import read
from fastunit.fusion.report import Entry, Report

_STARTS = (("conv", "transpose"), ("instance_norm", "batch_norm"))


def rewrite(module: GraphModule, report: Report) -> GraphModule:
    """Replace the chains of dynamo's graph in place; convolutions first, then lone norms.

    A graph that enters torch.func's transforms is left as it is.

    Args:
        module: with the example values that dynamo leaves in `node.meta`.
        report: what is fused and left is added to it.

    Returns:
        The same module.
    """
    graph = module.graph
    report.graphs += 1
    if hazards.transforms(graph):
        report.left.append(Entry("", "a graph", "torch.func is entered in it"))
        return module
    left: set[Node] = set()  # nodes of chains that are left
    for kinds in _STARTS:
        for node in list(graph.nodes):
            call = read(node)
            if node._erased or node in left or call is None or call.kind not in kinds:
                continue
            try:
                chain = Finder(graph).chain(node, call)
            except Unfit as reason:
                report.left.append(Entry(_where(node), call.kind, str(reason)))
                continue
            if not _decide(chain, module, report):
                left.update(chain.nodes)
    graph.lint()
    module.recompile()
    return module


def _decide(chain: Chain, module: GraphModule, report: Report) -> bool:
    """Replace a chain, or leave it for a reason; return whether it was replaced."""
    where, what = _where(chain.nodes[0]), ", ".join(chain.names)
    reason = rules.loss(chain)
    if reason is None:
        chain.replace(module.graph)
        report.fused.append(Entry(where, what))
    else:
        report.left.append(Entry(where, what, reason))
    return reason is None


def _where(node: Node) -> str:
    """Return the path of the module whose call made a node, as in `named_modules`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    for mark in ("L['self']", "._modules", "'", "]"):
        path = path.replace(mark, "")
    return path.replace("[", ".").strip(".")
