"""What a node of dynamo's graph computes: a kind of operation, and its arguments by name."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node


class Call(NamedTuple):
    """An operation by its kind, one of those in `_FUNCTIONS`, and its arguments by name."""

    kind: str
    arguments: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


def _native(name: str) -> Any:
    """Return one of the functions behind torch.nn.functional."""
    module: Any = torch._C
    return getattr(module._nn, name)


_CONV = "input weight bias=None stride=1 padding=0"
_RUNNING = "input running_mean running_var weight=None bias=None"
_Y = "input inplace=False"
# Functions and methods of each kind, and their arguments in order with defaults.
_SPECIFICATIONS: list[tuple[str, str, list[Any]]] = [
    ("conv", f"{_CONV} dilation=1 groups=1", [torch.conv2d, F.conv2d]),
    (
        "transpose",
        f"{_CONV} output_padding=0 groups=1 dilation=1",
        [torch.conv_transpose2d, F.conv_transpose2d],
    ),
    ("pad", "input pad mode='constant' value=None", [F.pad, _native("pad")]),
    (
        "resize",
        "input size=None scale_factor=None mode='nearest' align_corners=None "
        "recompute_scale_factor=None antialias=False",
        [F.interpolate],
    ),
    (
        "instance_norm",
        "input running_mean=None running_var=None weight=None bias=None use_input_stats=True "
        "momentum=0.1 eps=1e-5",
        [F.instance_norm],
    ),
    ("batch_norm", f"{_RUNNING} training=False momentum=0.1 eps=1e-5", [F.batch_norm]),
    ("relu", _Y, [F.relu, torch.relu, torch.relu_, "relu", "relu_"]),
    ("lrelu", "input negative_slope=0.01 inplace=False", [F.leaky_relu, _native("leaky_relu_")]),
    ("prelu", "input weight", [F.prelu, torch.prelu, "prelu"]),
    ("selu", _Y, [F.selu, torch.selu, torch.selu_]),
    ("tanh", _Y, [torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"]),
    ("add", "input other alpha=1", [operator.add, operator.iadd, torch.add, "add", "add_"]),
    ("sub", "input other alpha=1", [operator.sub, torch.sub, "sub"]),
    ("mul", "input other", [operator.mul, torch.mul, "mul"]),
    ("div", "input other", [operator.truediv, torch.div, torch.true_divide, "div"]),
    ("mean", "input dim=None keepdim=False", [torch.mean, "mean"]),
    ("std", "input dim=None unbiased=True keepdim=False correction=1", [torch.std, "std"]),
    ("contiguous", "input", ["contiguous"]),
]
# Views of the same values in another shape.
_VIEWS = {"view", "reshape", "unsqueeze", "flatten", torch.reshape, torch.flatten, torch.unsqueeze}
_FUNCTIONS: dict[Any, tuple[str, list[tuple[str, Any]]]] = {}


def _register() -> None:
    for kind, text, targets in _SPECIFICATIONS:
        names = []
        for part in text.split():
            name, _, default = part.partition("=")
            names.append((name, eval(default) if default else None))
        _FUNCTIONS.update((target, (kind, names)) for target in targets)


_register()


def read(node: Any) -> Call | None:
    """Return what a node computes, or None where it is no node or nothing of the above."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return None
    if node.target not in _FUNCTIONS:
        return None
    kind, names = _FUNCTIONS[node.target]
    known = dict(names)
    if len(node.args) > len(names) or any(name not in known for name in node.kwargs):
        return None
    given = {name: value for (name, _), value in zip(names, node.args, strict=False)}
    return Call(kind, known | given | node.kwargs)


def is_view(node: Any) -> bool:
    """Return whether a node is another shape of the same values."""
    return isinstance(node, Node) and node.target in _VIEWS


def value(node: Any) -> Any:
    """Return the example value that dynamo left for a node; a tensor, or None."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def tensor(node: Any) -> Tensor | None:
    found = value(node)
    return found if isinstance(found, Tensor) else None


def same_size(a: Any, b: Any) -> bool:
    """Return whether two sizes, which may be symbols, are known to be equal."""
    return a == b if isinstance(a, int) and isinstance(b, int) else str(a) == str(b)


def alike(a: Any, b: Any) -> bool:
    """Return whether two nodes' tensors have the same shape and dtype."""
    one, other = tensor(a), tensor(b)
    if one is None or other is None or one.dim() != other.dim() or one.dtype != other.dtype:
        return False
    return all(map(same_size, one.shape, other.shape))


def has_shape(node: Any, *shape: Any) -> bool:
    found = tensor(node)
    return (
        found is not None and found.dim() == len(shape) and all(map(same_size, found.shape, shape))
    )


def hint(size: Any) -> int:
    """Return a size, of a symbol the one that was seen."""
    return size if isinstance(size, int) else int(size.node.hint or 1)


def scalar(given: Any) -> int | None:
    """Return the one integer of a stride or padding, the same for both axes, or None."""
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    first = values[0] if values else None
    whole = isinstance(first, int) and not isinstance(first, bool)
    return first if whole and all(each == first for each in values) else None


def only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
