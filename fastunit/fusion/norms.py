"""Norms as networks write them: which nodes they are, and the arguments of a fused operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from fastunit.fusion.operations import (
    Call,
    alike,
    has_shape,
    is_view,
    only_user,
    read,
    tensor,
)

Make = Callable[[Graph], Any]  # adds nodes to a graph and returns the one with the argument


@dataclass
class NormMatch:
    """A norm of a tensor: its nodes, the last of which is the result, and its arguments."""

    nodes: list[Node]
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Make] = field(default_factory=dict)  # arguments that take nodes of their own


def find_norm(x: Node) -> NormMatch | None:
    """Return the norm that is all that becomes of x, or None."""
    for match in (_only_call, _adaptive, _layer_norm):
        found = match(x)
        if found is not None and alike(found.nodes[-1], x):
            return found
    return None


def _only_call(x: Node) -> NormMatch | None:
    node = only_user(x)
    call = read(node)
    if node is None or call is None or call["input"] is not x:
        return None
    return find_call(node)


def find_call(node: Node) -> NormMatch | None:
    """Return the norm that a single call computes, or None."""
    call = read(node)
    if call is None:
        return None
    if call.kind == "instance_norm" and call["use_input_stats"] and call["running_mean"] is None:
        options = {"norm": "in", "eps": call["eps"]} | _affine(call["weight"], call["bias"])
        return NormMatch([node], "instance norm", options)
    trained = call.kind == "batch_norm" and call["training"]
    own = call.kind == "instance_norm" and call["use_input_stats"]
    if call.kind not in ("batch_norm", "instance_norm") or trained or own:
        return None
    if not isinstance(call["running_mean"], Node) or not isinstance(call["running_var"], Node):
        return None
    scale, shift = _folded(call)
    name = f"{call.kind.split('_')[0]} norm in evaluation"
    return NormMatch([node], name, {}, {"gamma": scale, "beta": shift})


def _affine(weight: Any, bias: Any) -> dict[str, Any]:
    given = {"gamma": weight, "beta": bias}
    return {name: value for name, value in given.items() if value is not None}


def _folded(call: Call) -> tuple[Make, Make]:
    """Return what makes scale and shift of running statistics, weight and bias."""

    def scale(graph: Graph) -> Node:
        shifted = graph.call_method("add", (call["running_var"], call["eps"]))
        rstd = graph.call_method("rsqrt", (shifted,))
        return rstd if call["weight"] is None else graph.call_method("mul", (rstd, call["weight"]))

    def shift(graph: Graph) -> Node:
        mean = graph.call_method("mul", (call["running_mean"], scale(graph)))
        negative = graph.call_method("neg", (mean,))
        bias = call["bias"]
        return negative if bias is None else graph.call_method("add", (negative, bias))

    return scale, shift


def _adaptive(x: Node) -> NormMatch | None:
    """Match AdaIN as the batch norm of [1, N * C, H, W], or as an instance norm of it."""
    nodes, node, shape = [], only_user(x), tensor(x)
    if shape is None or shape.dim() != 4:
        return None
    while node is not None and (is_view(node) or _is_contiguous(node)):
        nodes.append(node)
        node = only_user(node)
    call = read(node)
    if node is None or not nodes or call is None or call.kind != "batch_norm":
        return None
    samples, channels = shape.shape[:2]
    rows = tensor(nodes[-1])
    if not call["training"] or call["input"] is not nodes[-1] or not isinstance(channels, int):
        return None
    if not has_shape(nodes[-1], 1, samples * channels, *shape.shape[2:]) or rows is None:
        return None
    if not all(_is_temporary(call[name]) for name in ("running_mean", "running_var")):
        return None
    last = only_user(node)
    if last is None or not is_view(last):
        return None
    made = {
        name: _rows(call[given], channels)
        for name, given in (("gamma", "weight"), ("beta", "bias"))
        if call[given] is not None
    }
    return NormMatch([*nodes, node, last], "AdaIN", {"norm": "in", "eps": call["eps"]}, made)


def _is_contiguous(node: Node) -> bool:
    call = read(node)
    return call is not None and call.kind == "contiguous"


def _rows(vector: Node, channels: int) -> Make:
    return lambda graph: graph.call_method("reshape", (vector, (-1, channels)))


def _is_temporary(statistics: Any) -> bool:
    """Return whether running statistics are updated in a copy that nothing else reads."""
    if statistics is None:
        return True
    copied = isinstance(statistics, Node) and statistics.target in ("repeat", "clone")
    return copied and only_user(statistics) is not None


def _layer_norm(x: Node) -> NormMatch | None:
    """Match (x - mean) / (std + eps) over all values of a sample, and gamma and beta after it."""
    shape = tensor(x)
    if shape is None or shape.dim() != 4:
        return None
    for difference in x.users:
        quotient = only_user(difference)
        minus, over = read(difference), read(quotient)
        if quotient is None or minus is None or over is None:
            continue
        if minus.kind != "sub" or minus["input"] is not x or over.kind != "div":
            continue
        if over["input"] is not difference or minus["alpha"] != 1:
            continue
        deviation = read(over["other"])
        if deviation is None or deviation.kind != "add" or deviation["alpha"] != 1:
            continue
        eps = deviation["other"]
        if not isinstance(eps, float):
            continue
        means = _statistic(minus["other"], x, "mean")
        deviations = _statistic(deviation["input"], x, "std")
        if means is None or deviations is None:
            continue
        nodes = [*means, *deviations, over["other"], difference, quotient]
        inside = dict.fromkeys(nodes)
        if any(user not in inside for each in (x, *nodes[:-1]) for user in each.users):
            continue
        return _with_affine(list(inside), shape.shape[1], eps)
    return None


def _statistic(node: Any, x: Node, kind: str) -> list[Node] | None:
    """Return the nodes from x to its samples' mean or deviation [N, 1, 1, 1], or None."""
    image = tensor(x)
    if image is None or not has_shape(node, image.shape[0], 1, 1, 1):
        return None
    found = []
    while is_view(node):
        found.append(node)
        node = node.args[0]
    call = read(node)
    if call is None or call.kind != kind or not _over_samples(node, call, image.shape[0]):
        return None
    if kind == "std" and (call["unbiased"] is not True or call["correction"] != 1):
        return None
    found.append(node)
    node = call["input"]
    while is_view(node):
        found.append(node)
        node = node.args[0]
    return found[::-1] if node is x else None


def _over_samples(node: Node, call: Call, samples: Any) -> bool:
    """Return whether a statistic is of everything but the samples."""
    source, dim = tensor(call["input"]), call["dim"]
    dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    if source is None:
        return False
    if dim is None:  # over all values, which are one sample's
        return samples == 1
    if source.shape[0] != samples:
        return False
    return {d % source.dim() for d in dims} == set(range(1, source.dim()))


def _with_affine(nodes: list[Node], channels: Any, eps: float) -> NormMatch:
    found = NormMatch(nodes, "layer norm", {"norm": "ln", "eps": eps})
    for kind, name in (("mul", "gamma"), ("add", "beta")):
        node = only_user(nodes[-1])
        call = read(node)
        if node is None or call is None or call.kind != kind or call["input"] is not nodes[-1]:
            break
        if call.arguments.get("alpha", 1) != 1:
            break
        vector, views = call["other"], []
        while is_view(vector):
            views.append(vector)
            vector = vector.args[0]
        if not has_shape(call["other"], 1, channels, 1, 1) or not has_shape(vector, channels):
            break
        nodes.append(node)
        found.options[name] = vector
    return found
