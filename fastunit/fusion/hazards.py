"""What keeps a node in its place: operations that change tensors, or what follows them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from fastunit.fusion.operations import read, tensor

_IN_PLACE = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.ipow, operator.iand, operator.ior, operator.ixor,
}  # fmt: skip


# Arguments of functions and methods that write to one of their arguments.
_WRITTEN = ("input", "self", "out")


def is_hazard(node: Node) -> bool:
    """Return whether no tensor may be read later than before this node: it may write to one.

    Or switches something: autocast, gradients.
    """
    if node.op not in ("call_function", "call_method"):
        return False
    if _is_in_place(node):
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        return True
    # Autocast; and what is called for what it does, as a switch of gradients.
    switches = _name(node).startswith(("_enter", "_exit"))
    return switches or (not node.users and read(node) is None)


def _is_in_place(node: Node) -> bool:
    call, name = read(node), _name(node)
    return bool(
        node.kwargs.get("inplace")
        or (call is not None and call.arguments.get("inplace"))
        or node.kwargs.get("out") is not None
        or node.target in _IN_PLACE
        or (name.endswith("_") and not name.endswith("__"))
    )


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def may_write(hazard: Node, image: Any) -> bool:
    """Return whether a node may write to the memory of an image.

    An operation in place writes to its first argument, or to `out`; of others, and of those that
    write to lists, nothing is known.
    """
    known = [hazard.kwargs[name] for name in _WRITTEN if hazard.kwargs.get(name) is not None]
    written = [*hazard.args[:1], *known]
    if not _is_in_place(hazard) or not all(isinstance(each, Node) for each in written):
        written = hazard.all_input_nodes
    memory = _memory(image)
    return memory is None or any(_memory(node) == memory for node in written)


def _memory(node: Any) -> int | None:
    found = tensor(node)
    return None if found is None else found.untyped_storage()._cdata


def transforms(graph: Graph) -> bool:
    """Return whether torch.func or forward-mode AD is entered inside a graph."""
    return any(_enters(node.target) for node in graph.nodes if node.op == "call_function")


def _enters(target: Any) -> bool:
    module, name = getattr(target, "__module__", None) or "", getattr(target, "__name__", "")
    return "functorch" in module or "nesting" in name or target is torch.func.functional_call
