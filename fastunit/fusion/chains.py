"""Chains of nodes that one fused operation computes, from a convolution or a norm on.

[pad] -> convolution, transposed convolution or nearest 2x and convolution -> [norm] -> [activation]
-> [residual]. Never through a value that something else uses too, nor past a node that may write to
what the chain reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from fastunit.fusion import hazards
from fastunit.fusion.norms import Make, find_call, find_norm
from fastunit.fusion.operations import (
    Call,
    alike,
    hint,
    only_user,
    read,
    same_size,
    scalar,
    tensor,
)
from fastunit.kernels import conv_norm_act, conv_transpose, norm_act, upsample_conv

_PAD_MODES = {"reflect": "reflect", "replicate": "replicate", "constant": "zero"}
_NAMES = {"conv": "convolution", "transpose": "transposed convolution"}
_OPERATIONS = {
    "conv": conv_norm_act,
    "transpose": conv_transpose,
    "upsample": upsample_conv,
    "norm": norm_act,
}


class Unfit(Exception):
    """Why a node cannot begin a chain."""


@dataclass
class Chain:
    """Nodes that become one call; the last one's value is its result."""

    kind: str  # "conv", "transpose", "upsample" or "norm"
    nodes: list[Node]
    tensors: tuple[Any, ...]  # x, w, b; or x
    options: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Make] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    @property
    def last(self) -> Node:
        return self.nodes[-1]

    @property
    def image(self) -> Node:
        return self.tensors[0]

    def replace(self, graph: Graph) -> None:
        """Put the call in place of the nodes."""
        with graph.inserting_before(self.last):
            made = {name: make(graph) for name, make in self.made.items()}
            options = self.options | made
            call = graph.call_function(_OPERATIONS[self.kind], self.tensors, options)
        call.meta = dict(self.last.meta)
        self.last.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            graph.erase_node(node)


class Finder:
    """Finds the chains of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._place = {node: index for index, node in enumerate(graph.nodes)}
        self._hazards = [node for node in graph.nodes if hazards.is_hazard(node)]

    def chain(self, node: Node, call: Call) -> Chain:
        """Return the longest chain from a convolution or norm on.

        Raises:
            Unfit: with the reason, if there is none.
        """
        if call.kind in ("conv", "transpose"):
            chain = self._convolution(node, call)
            self._add_norm(chain)
        else:
            chain = self._norm(node, call)
        self._add_activation(chain)
        self._add_residual(chain)
        return chain

    def _convolution(self, node: Node, call: Call) -> Chain:
        where = _settings(call)
        chain = Chain(call.kind, [node], (call["input"], call["weight"], call["bias"]), where)
        taps = _check_tensors(node, *chain.tensors)
        chain.names.append(f"{taps[0]}x{taps[1]} {_NAMES[call.kind]}")
        if call.kind == "conv":
            self._add_padding(chain)
            self._add_upsampling(chain)
        return chain

    def _norm(self, node: Node, call: Call) -> Chain:
        x, found = call["input"], find_call(node)
        image = tensor(x)
        if found is None or image is None or image.dim() != 4 or not image.is_floating_point():
            raise Unfit("not a norm of each image by itself, or one that keeps statistics")
        return Chain("norm", found.nodes, (x,), dict(found.options), dict(found.made), [found.name])

    def _add_padding(self, chain: Chain) -> None:
        """Take in the padding before a convolution that pads nothing itself."""
        pad = chain.image
        call = read(pad)
        if call is None or call.kind != "pad" or only_user(pad) is None:
            return
        sides, mode = tuple(call["pad"]), _PAD_MODES.get(call["mode"])
        amount = scalar(sides) if len(sides) == 4 else None
        own = chain.options["padding"]
        if mode is None or amount is None or amount < 0 or not self._replaces(pad, chain, call):
            return
        if call["value"] not in (None, 0, 0.0) or (own and mode != "zero"):
            return
        chain.nodes.insert(0, pad)
        chain.tensors = (call["input"], *chain.tensors[1:])
        chain.options |= {"padding": own + amount, "pad_mode": mode}
        chain.names.insert(0, f"{mode} padding")

    def _add_upsampling(self, chain: Chain) -> None:
        """Take in a nearest 2x upsampling before it all."""
        resize = chain.image
        call = read(resize)
        if call is None or call.kind != "resize" or only_user(resize) is None:
            return
        factor = call["scale_factor"]
        factors = tuple(factor) if isinstance(factor, (tuple, list)) else (factor,)
        plain = not call["align_corners"] and not call["antialias"]
        if call["mode"] != "nearest" or any(each != 2 for each in factors) or not plain:
            return
        if chain.options["stride"] != 1 or not self._replaces(resize, chain, call):
            return
        chain.kind = "upsample"
        chain.nodes.insert(0, resize)
        chain.tensors = (call["input"], *chain.tensors[1:])
        del chain.options["stride"]
        chain.names.insert(0, "nearest 2x")

    def _add_norm(self, chain: Chain) -> None:
        found = find_norm(chain.last)
        if found is None or not self._moves(chain.nodes[0], found.nodes[-1], found.nodes):
            return
        chain.nodes += found.nodes
        chain.options |= found.options
        chain.made |= found.made
        chain.names.append(found.name)

    def _add_activation(self, chain: Chain) -> None:
        node = only_user(chain.last)
        call = read(node)
        if node is None or call is None or call["input"] is not chain.last:
            return
        if call.kind not in ("relu", "lrelu", "prelu", "selu", "tanh") or not self._fits(
            chain, node
        ):
            return
        if call.kind == "prelu" and not _learnt_slope(call["weight"], chain.last):
            return
        slope = {"lrelu": "negative_slope", "prelu": "weight"}.get(call.kind)
        chain.options |= {"act": call.kind} | ({"slope": call[slope]} if slope else {})
        chain.nodes.append(node)
        chain.names.append(call.kind)

    def _add_residual(self, chain: Chain) -> None:
        """Take in an addition of an image of the same shape; upsampling has none."""
        node = only_user(chain.last)
        call = read(node)
        if node is None or call is None or call.kind != "add" or call["alpha"] != 1:
            return
        one, other = call["input"], call["other"]
        changed = hazards.is_hazard(node)  # writes to the first of the two
        residual = other if one is chain.last else one
        if chain.kind == "upsample" or one is other or (changed and one is not chain.last):
            return
        if not alike(residual, chain.last) or not self._fits(chain, node):
            return
        chain.options["residual"] = residual
        chain.nodes.append(node)
        chain.names.append("residual")

    def _fits(self, chain: Chain, node: Node) -> bool:
        return alike(node, chain.last) and self._moves(chain.nodes[0], node, chain.nodes)

    def _replaces(self, copy: Node, chain: Chain, call: Call) -> bool:
        """Return whether the call may read, and keep for backward, what was copied before it."""
        later = [each for each in self._hazards if self._place[each] > self._place[copy]]
        changed = any(hazards.may_write(hazard, call["input"]) for hazard in later)
        return not changed and self._moves(copy, chain.last)

    def _moves(self, first: Node, last: Node, inside: list[Node] | None = None) -> bool:
        """Return whether what happens at `first` may happen at `last`, where the call is."""
        begin, end = self._place[first], self._place[last]
        own = inside or ()
        return not any(begin < self._place[h] < end and h not in own for h in self._hazards)


def _settings(call: Call) -> dict[str, Any]:
    """Return stride and padding of a convolution.

    Raises:
        Unfit: it has what the fused operations do not.
    """
    if call["groups"] != 1:
        raise Unfit(f"groups={call['groups']}")
    if scalar(call["dilation"]) != 1:
        raise Unfit(f"dilation={call['dilation']}")
    found = {}
    names = ("stride", "padding", *(["output_padding"] if call.kind == "transpose" else []))
    for name in names:
        found[name] = scalar(call[name])
        if found[name] is None:
            raise Unfit(f"{name}={call[name]!r} is not one number for both axes")
    if call.kind == "transpose" and found["output_padding"] >= found["stride"]:
        raise Unfit(f"output_padding={found['output_padding']} is not below the stride")
    return found


def _check_tensors(node: Node, x: Any, w: Any, b: Any) -> tuple[int, int]:
    """Return the filters' height and width.

    Raises:
        Unfit: a tensor has a shape or dtype that the fused operations do not take.
    """
    image, filters, bias, result = (tensor(each) for each in (x, w, b, node))
    if image is None or filters is None or result is None or (b is not None and bias is None):
        raise Unfit("tensors of unknown shape")
    if image.dim() != 4 or filters.dim() != 4:
        raise Unfit(f"an image of {image.dim()} dimensions, not [N, C, H, W]")
    dtypes = result.dtype, torch.float32  # which autocast casts; other mixtures PyTorch refuses
    if not image.dtype.is_floating_point or any(
        each is not None and each.dtype not in dtypes for each in (filters, bias)
    ):
        raise Unfit(f"filters of {filters.dtype} on an image of {image.dtype}")
    rows, columns = filters.shape[2:]
    return hint(rows), hint(columns)


def _learnt_slope(weight: Any, image: Node) -> bool:
    found, result = tensor(weight), tensor(image)
    if found is None or result is None or found.dim() != 1:
        return False
    return any(same_size(found.shape[0], size) for size in (1, result.shape[1]))
