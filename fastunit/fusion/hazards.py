"""What keeps a node in its place: operations that change tensors, or what follows them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from fastunit.fusion.operations import read

_IN_PLACE = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.ipow, operator.iand, operator.ior, operator.ixor,
}  # fmt: skip


def is_hazard(node: Node) -> bool:
    """Return whether no tensor may be read later than before this node: it may write to one.

    Or switches something: autocast, gradients.
    """
    if node.op not in ("call_function", "call_method"):
        return False
    call = read(node)
    if node.kwargs.get("inplace") or (call is not None and call.arguments.get("inplace")):
        return True
    if node.kwargs.get("out") is not None or node.target in _IN_PLACE:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        return True
    # Autocast; and what is called for what it does, as a switch of gradients.
    return name.startswith(("_enter", "_exit")) or (not node.users and call is None)


def transforms(graph: Graph) -> bool:
    """Return whether torch.func or forward-mode AD is entered inside a graph."""
    return any(_enters(node.target) for node in graph.nodes if node.op == "call_function")


def _enters(target: Any) -> bool:
    module, name = getattr(target, "__module__", None) or "", getattr(target, "__name__", "")
    return "functorch" in module or "nesting" in name or target is torch.func.functional_call
