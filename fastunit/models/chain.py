"""Networks that are layers one after the other, run so that each layer knows the next.

On Triton kernels a layer then writes its result as the next one reads it, with its halo
(`fastunit.kernels.conv.linked`). A `Program` also spares what does not change from call to call:
whether modules have hooks or were replaced is checked once for a network, in one loop.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastunit.kernels.common import eager, runtime
from fastunit.kernels.conv.block import apply
from fastunit.kernels.conv.layouts import Filters
from fastunit.kernels.conv.linked import Next, Padded
from fastunit.kernels.conv.plan import Plan
from fastunit.models.unfused import untouched

Image = Tensor | Padded


class Weights(NamedTuple):
    """The parameters of a convolutional layer.

    For G groups each has a leading dimension G; sample n then uses group n // (N / G).
    """

    weight: Tensor  # [K, C, R, S]
    bias: Tensor | None  # [K]
    gamma: Tensor | None  # [K]
    beta: Tensor | None  # [K]
    filters: Filters | None = None  # the weight, laid out before


Store = dict[tuple[int, ...], Filters]  # by the identity of a convolution, or of two grouped ones


class Operation(NamedTuple):
    """A layer as one fused operation: what it computes, and the modules with its parameters."""

    plan: Plan
    conv: nn.Module
    norm: nn.Module | None = None  # with gamma and beta

    def weights(self, store: Store | None = None) -> Weights:
        """Return the parameters as they are now, and their layouts if there are some."""
        filters = store.get((id(self.conv),)) if store else None
        if filters is not None and filters.direct is not None:
            weight, *others = filters.direct.values
            return Weights(cast(Tensor, weight), *others, filters=filters)
        conv: Any = self.conv
        norm: Any = self.norm
        parameters = conv._parameters  # faster than attributes
        if "weight" in parameters and "bias" in parameters:
            weight, bias = parameters["weight"], parameters["bias"]
        else:  # computed from others, or a view of them all
            weight, bias = conv.weight, conv.bias
        gamma, beta = (None, None) if norm is None else (norm.gamma, norm.beta)
        return Weights(weight, bias, gamma, beta, filters)

    def resembles(self, other: Operation) -> bool:
        """Return whether two layers differ in their weights alone."""
        mine, others = self.weights(), other.weights()
        shapes = [[None if p is None else p.shape for p in each] for each in (mine[:4], others[:4])]
        return self.plan == other.plan and shapes[0] == shapes[1]

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, prelu: Tensor | None = None
    ) -> Tensor:
        """Apply the layer as it is, without regard to others."""
        w = self.weights()
        return apply(self.plan, x, w.weight, w.bias, w.gamma, w.beta, prelu, residual)


class Step(NamedTuple):
    """A layer of a network."""

    layer: Any  # callable with an image, and with a residual if it `adds` one
    operation: Operation | None  # None: the layer is called
    adds: bool  # the input of the layer before it: the second half of a residual block


class Snapshot:
    """What a network's modules are at one time."""

    def __init__(self, network: nn.Module) -> None:
        self._seen = [_seen(module) for module in network.modules()]

    def is_current(self) -> bool:
        """Return whether no module has changed since: hooks, options, children, mode."""
        if torch_module._has_any_global_hook():
            return False
        for module, kind, children, options in self._seen:
            if (
                type(module) is not kind
                or module._forward_pre_hooks
                or module._forward_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
                or "forward" in module.__dict__
                or module._modules != children
            ):
                return False
            state = module.__dict__
            for name, value in options:
                if state.get(name) != value:
                    return False
        return True


def _seen(module: nn.Module) -> tuple:
    """Return what `Snapshot.is_current` compares."""
    plain = (bool, int, float, str, tuple)
    options = [(name, value) for name, value in vars(module).items() if isinstance(value, plain)]
    return module, type(module), dict(module._modules), options


class Program:
    """The layers of a network in order.

    A layer that is one fused operation has `per_sample`, whether it is one and groups of samples
    can have different weights, and `operation`, which returns it. A residual block has `halves`:
    two such layers, the second of which adds the block's input; None if it was modified.

    Args:
        network: nested `nn.Sequential` and `Chain` of layers; a part that has hooks, was replaced
            or is of another class is one layer.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.steps = network, _steps(network)
        self.layers = [step.layer for step in self.steps]
        self.readers = [_reader(step) for step in self.steps[1:]] + [None]
        self.is_current = Snapshot(network).is_current

    def shares(self, other: Program) -> bool:
        """Return whether both networks have a layer in common, at the same place."""
        return any(map(operator.is_, self.layers, other.layers))

    def __call__(self, x: Tensor, store: Store | None = None) -> Tensor:
        """Apply the layers, with filters from the store."""
        if links(x):
            return self._run_linked(x, store)
        before = y = x
        for layer, operation, adds in self.steps:
            before, given = y, before
            if operation is not None:
                w, b, gamma, beta, filters = operation.weights(store)
                residual = given if adds else None
                y = apply(operation.plan, y, w, b, gamma, beta, None, residual, filters=filters)
            else:
                y = layer(y, given) if adds else layer(y)
        return y

    def _run_linked(self, x: Tensor, store: Store | None) -> Tensor:
        before: Image = x
        y: Image = x
        for step, follow in zip(self.steps, self.readers, strict=True):
            residual = before if step.adds else None
            before, y = y, call(step, store, follow, y, residual)
        return image_of(y)


def _steps(network: nn.Module) -> list[Step]:
    found: list[Step] = []
    todo = [network]
    while todo:
        layer = todo.pop()
        if not untouched(layer, type(layer)):
            found.append(Step(layer, None, False))
        elif type(layer) is nn.Sequential:
            todo += reversed(layer)
        elif isinstance(layer, Chain) and type(layer).forward is Chain.forward:
            todo.append(layer.model)
        elif halves := getattr(layer, "halves", None):
            found += [_step(halves[0], False), _step(halves[1], True)]
        elif type(layer) is not nn.Identity:
            found.append(_step(layer, False))
    return found


def _step(layer: Any, adds: bool) -> Step:
    return Step(layer, layer.operation() if getattr(layer, "per_sample", False) else None, adds)


def _reader(step: Step) -> Next | None:
    """Return what a layer reads; None: an ordinary image."""
    if step.operation is None:
        return None
    return Next(step.operation.plan, step.operation.weights().weight.shape)


def call(
    step: Step,
    store: Store | None,
    follow: Next | None,
    x: Image,
    residual: Image | None = None,
) -> Image:
    """Apply a layer, whose result goes to `follow`, with filters from the store.

    The result is Padded where `follow` says which layer reads it and kernels can hand it on.
    """
    layer, operation, adds = step
    added = None if residual is None else image_of(residual)
    if operation is None:
        return layer(image_of(x), added) if adds else layer(image_of(x))
    w, b, gamma, beta, filters = operation.weights(store)
    return apply(
        operation.plan, x, w, b, gamma, beta, None, added, filters=filters, follow=follow
    )  # fmt: skip


def links(x: Tensor) -> bool:
    """Return whether layers can hand images on in frames."""
    return runtime.choose_impl("auto", x) == "triton" and eager.only_autograd(x)


def image_of(x: Image) -> Tensor:
    """Return the image itself, [N, C, H, W]."""
    return x.image if isinstance(x, Padded) else x


class Chain(nn.Module):
    """A network that is the layers of `model`, one after the other."""

    model: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(self.model, x)


def run_chain(model: nn.Module, x: Tensor) -> Tensor:
    """Apply layers one after the other."""
    return Program(model)(x) if links(x) else model(x)
