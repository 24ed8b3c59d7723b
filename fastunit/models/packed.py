"""The filters of two networks' blocks as the fused operations' kernels read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fastunit.kernels.common import runtime
from fastunit.kernels.conv.layouts import Filters
from fastunit.kernels.conv.packed import Block, PackedFilters, aten_filters
from fastunit.models.chain import Operation, Store


class NetworkFilters:
    """Lays out the filters of two networks' blocks for as long as they stay unchanged.

    On Triton's kernels all layouts are in one buffer, and one launch writes them. On PyTorch's own
    they are casts, and the phases of upsampling.

    Args:
        a: a network.
        b: the other domain's; may have layers in common with a.
        store: where `GroupedExecution` looks for filters.
    """

    def __init__(self, a: nn.Module, b: nn.Module, store: Store) -> None:
        self._networks, self._store = (a, b), store
        self._packed: PackedFilters | None = None

    @torch.no_grad()
    def write(self, grouped: bool) -> None:
        """Lay out the filters as they are now, for images of autocast's dtype.

        Args:
            grouped: whether layers of equal settings may be run in groups.
        """
        weight = next(self._networks[0].parameters())
        like = runtime.autocast(weight[:0])
        impl = runtime.choose_impl("auto", like)
        every = impl == "triton" or like.dtype != weight.dtype
        layers = [
            of for of in _layers(*self._networks, grouped) if every or of[0].plan.kind == "upsample"
        ]
        if not layers or impl == "plain":
            return
        blocks, of_layers = [_block(of) for of in layers], aten_filters
        if impl == "triton":
            of_layers = self._on_triton
        for of, filters in zip(layers, of_layers(blocks, like.dtype), strict=True):
            if filters is not None:
                self._keep(tuple(id(each.conv) for each in of), filters)

    def _on_triton(self, blocks: list[Block], dtype: torch.dtype) -> Sequence[Filters]:
        if self._packed is None or not self._packed.is_of(blocks, dtype):
            self._packed = PackedFilters(blocks, dtype)
        self._packed.write()
        return self._packed.filters

    def _keep(self, keys: tuple[int, ...], filters: Filters) -> None:
        self._store[keys] = filters
        for place, key in enumerate(keys if len(keys) > 1 else ()):  # each alone as well
            self._store[key,] = Filters(
                filters.of, *(each[place : place + 1] for each in filters[1:])
            )


def _layers(a: nn.Module, b: nn.Module, grouped: bool) -> Iterator[tuple[Operation, ...]]:
    """Yield the layers of both networks, two together where they can be grouped."""
    mine, others = _operations(a), _operations(b)
    if not grouped or len(mine) != len(others):
        yield from ((each,) for each in {each.conv: each for each in [*mine, *others]}.values())
        return
    for pair in zip(mine, others, strict=True):
        if pair[0].conv is pair[1].conv:
            yield pair[:1]
        elif pair[0].resembles(pair[1]):
            yield pair
        else:
            yield from ((each,) for each in pair)


def _operations(network: nn.Module) -> list[Operation]:
    """Return the layers that can take filters, in the order of the network's modules."""
    found = {}
    for module in network.modules():
        for layer in getattr(module, "halves", None) or (module,):
            if getattr(layer, "per_sample", False):
                operation = layer.operation()
                found[operation.conv] = operation
    return list(found.values())


def _block(layers: tuple[Operation, ...]) -> Block:
    weights = tuple(each.weights().weight for each in layers)
    return Block(weights, layers[0].plan.kind, layers[0].plan.stride)
