"""The filters of two networks' blocks as the fused operations' kernels read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fastunit.kernels.common import runtime
from fastunit.kernels.conv.layouts import Filters
from fastunit.kernels.conv.packed import Block, PackedFilters, aten_filters
from fastunit.models.grouped import Groupable, Store, groupable


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
        self._layers: dict[bool, list[tuple[Groupable, ...]]] = {}

    @torch.no_grad()
    def write(self, grouped: bool) -> None:
        """Lay out the filters as they are now, for images of autocast's dtype.

        Args:
            grouped: whether layers of equal settings may be run in groups.
        """
        if grouped not in self._layers:
            self._layers[grouped] = list(_layers(*self._networks, grouped))
        weight = next(self._networks[0].parameters())
        like = runtime.autocast(weight[:0])
        impl = runtime.choose_impl("auto", like)
        every = impl == "triton" or like.dtype != weight.dtype
        layers = [
            of
            for of in self._layers[grouped]
            if (every or of[0].convolution[0] == "upsample")
            and all(layer.per_sample for layer in of)  # modules may have been modified since
        ]
        if not layers or impl == "plain":
            return
        blocks, of_layers = [_block(of) for of in layers], aten_filters
        if impl == "triton":
            of_layers = self._on_triton
        for of, filters in zip(layers, of_layers(blocks, like.dtype), strict=True):
            if filters is not None:
                self._keep(tuple(map(id, of)), filters)

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


def _layers(a: nn.Module, b: nn.Module, grouped: bool) -> Iterator[tuple[Groupable, ...]]:
    """Yield the blocks of both networks, two together where they can be grouped."""
    mine, others = _blocks(a), _blocks(b)
    if not grouped or len(mine) != len(others):
        yield from ((block,) for block in dict.fromkeys([*mine, *others]))
        return
    for pair in zip(mine, others, strict=True):
        if pair[0] is pair[1]:
            yield pair[:1]
        elif groupable(*pair):
            yield pair
        else:
            yield from ((block,) for block in pair)


def _blocks(network: nn.Module) -> list[Groupable]:
    """Return the blocks that can take filters, in the order of the network's modules."""
    found = {}
    for module in network.modules():
        for block in getattr(module, "halves", None) or (module,):
            if hasattr(block, "settings") and block.per_sample:
                found[block] = None
    return list(found)


def _block(layers: tuple[Groupable, ...]) -> Block:
    return Block(tuple(layer.weights().weight for layer in layers), *layers[0].convolution)
