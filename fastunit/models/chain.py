"""Networks that are layers one after the other, run so that each layer knows the next.

On Triton kernels a layer then writes its result as the next one reads it, with its halo
(`fastunit.kernels.conv.linked`). Elsewhere the layers are called as `nn.Sequential` calls them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from fastunit.kernels.common import eager, runtime
from fastunit.kernels.conv.linked import Next, Padded
from fastunit.models.unfused import untouched

Unit = tuple[Any, ...]  # a layer, or the two of a residual block: the second adds its input


class Weights(NamedTuple):
    """The parameters of a convolutional layer; for G groups each has a leading dimension G."""

    weight: Tensor  # [K, C, R, S]
    bias: Tensor | None  # [K]
    gamma: Tensor | None  # [K]
    beta: Tensor | None  # [K]


class Fused(Protocol):
    """A layer that is one fused operation."""

    @property
    def per_sample(self) -> bool:
        """Whether it still is, and groups of samples can have different weights."""
        ...

    def weights(self) -> Weights: ...

    def settings(self) -> tuple:
        """Return the layer's settings: equal for layers that differ in their weights alone."""
        ...

    def reads(self) -> Next:
        """Return what a layer before this one must know of it."""
        ...

    def run(
        self,
        weights: Weights,
        x: Tensor | Padded,
        residual: Tensor | None = None,
        follow: Next | None = None,
    ) -> Any:
        """Apply the layer with the given weights instead of its own.

        Weights may be stacked: with G of each, sample n uses group n // (N / G). The result is a
        Tensor, or Padded where `follow` says which layer reads it.
        """
        ...


class Chain(nn.Module):
    """A network that is the layers of `model`, one after the other."""

    model: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        return run_chain(self.model, x)


def run_chain(model: nn.Sequential, x: Tensor) -> Tensor:
    """Apply layers one after the other."""
    if not links(x):
        return model(x)
    found = units(model)
    y: Tensor | Padded = x
    for place, unit in enumerate(found):
        follow = reader(found, place + 1)
        if len(unit) > 1:
            inner = call(unit[0], y, None, unit[1].reads())
            y = call(unit[1], inner, image_of(y), follow)
        else:
            y = call(unit[0], y, None, follow)
    return image_of(y)


def links(x: Tensor) -> bool:
    """Return whether layers can hand images on in frames."""
    return runtime.choose_impl("auto", x) == "triton" and eager.only_autograd(x)


def units(network: nn.Module) -> list[Unit]:
    """Return the layers of a network; a part that has hooks or was replaced is one layer."""
    found: list[Unit] = []
    todo = [network]
    while todo:
        layer = todo.pop()
        if not untouched(layer, type(layer)):
            found.append((layer,))
        elif type(layer) is nn.Sequential:
            todo += reversed(layer)
        elif isinstance(layer, Chain) and type(layer).forward is Chain.forward:
            todo.append(layer.model)
        elif type(layer) is not nn.Identity:
            found.append(getattr(layer, "halves", None) or (layer,))
    return found


def reader(found: list[Unit], place: int) -> Next | None:
    """Return what the unit at a place reads, None if that is an ordinary image."""
    if place == len(found):
        return None
    layer = found[place][0]
    return layer.reads() if getattr(layer, "per_sample", False) else None


def call(
    layer: Any, x: Tensor | Padded, residual: Tensor | None = None, follow: Next | None = None
) -> Tensor | Padded:
    """Call a layer, whose result goes to `follow`."""
    if getattr(layer, "per_sample", False):
        return layer.run(layer.weights(), x, residual, follow)
    return layer(image_of(x)) if residual is None else layer(image_of(x), residual)


def image_of(x: Tensor | Padded) -> Tensor:
    """Return the image itself, [N, C, H, W]."""
    return x.image if isinstance(x, Padded) else x
