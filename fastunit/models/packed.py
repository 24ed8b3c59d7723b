"""The filters of two networks' blocks as the fused operations' kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastunit.kernels.common import eager, runtime
from fastunit.kernels.conv.layouts import Direct, Filters
from fastunit.kernels.conv.packed import Block, PackedFilters, aten_filters
from fastunit.models.chain import Operation, Snapshot, Store
from fastunit.models.grouped import stacked


class Gradients(Protocol):
    """Where backward adds gradients, as `fastunit.training.gradients.FlatGradients`."""

    def of(self, *parameters: Tensor) -> Tensor | None:
        """Return a buffer for the gradient of a parameter, or those of several; None: none."""
        ...

    def first_use(self, *filters: Tensor) -> bool:
        """Return whether the gradient of filters is to be written, not added to its buffer."""
        ...


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
        self._operations: tuple[list[Operation], list[Operation]] = [], []
        self._snapshots: list[Snapshot] = []  # of when these were found
        self._packed: PackedFilters | None = None
        self._stacks: dict[tuple[int, ...], Tensor] = {}  # by the parameters' identities
        self._copies: list[tuple[Tensor, Tensor]] = []  # where to, what

    @torch.no_grad()
    def write(self, grouped: bool, gradients: Gradients | None = None) -> bool:
        """Lay out the filters as they are now, for images of autocast's dtype.

        Args:
            grouped: whether layers of equal settings may be run in groups.
            gradients: has buffers for the parameters' gradients. Where all of a block's parameters
                have one, its backward pass on Triton's kernels adds their gradients to it.

        Returns:
            Whether there are such blocks.
        """
        weight = next(self._networks[0].parameters())
        like = runtime.autocast(weight[:0])
        impl = runtime.choose_impl("auto", like)
        every = impl == "triton" or like.dtype != weight.dtype
        if not self._snapshots or not all(each.is_current() for each in self._snapshots):
            self._snapshots = [Snapshot(network) for network in self._networks]
            self._operations = _operations(self._networks[0]), _operations(self._networks[1])
        layers = [
            of
            for of in _layers(*self._operations, grouped)
            if every or of[0].plan.kind == "upsample"
        ]
        if not layers or impl == "plain":
            return False
        blocks, of_layers = [_block(of) for of in layers], aten_filters
        if impl == "triton":
            of_layers = self._on_triton
        if impl != "triton" or not (runtime.recording() or eager.only_autograd()):
            gradients = None
        found, self._copies = False, []
        for of, filters in zip(layers, of_layers(blocks, like.dtype), strict=True):
            if filters is not None:
                found |= self._keep(of, filters, gradients)
        if self._copies:
            targets, sources = zip(*self._copies, strict=True)
            torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
        return found

    def _on_triton(self, blocks: list[Block], dtype: torch.dtype) -> Sequence[Filters]:
        if self._packed is None or not self._packed.is_of(blocks, dtype):
            self._packed = PackedFilters(blocks, dtype)
        self._packed.write()
        return self._packed.filters

    def _keep(
        self, layers: tuple[Operation, ...], filters: Filters, gradients: Gradients | None
    ) -> bool:
        """Put filters into the store; return whether gradients are added to buffers."""
        both = filters.fprop, filters.dgrad
        for place, layer in enumerate(layers if len(layers) > 1 else ()):  # each alone as well
            fprop, dgrad = (each[place : place + 1] for each in both)
            alone = Filters(filters.of, fprop, dgrad)
            self._store[id(layer.conv),] = alone._replace(direct=self._direct((layer,), gradients))
        filters = filters._replace(direct=self._direct(layers, gradients))
        self._store[tuple(id(each.conv) for each in layers)] = filters
        return filters.direct is not None

    def _direct(self, layers: tuple[Operation, ...], gradients: Gradients | None) -> Direct | None:
        """Return the layers' parameters with their gradients' buffers, if all have one."""
        if gradients is None:
            return None
        values: list[Tensor | None] = []
        buffers: list[Tensor | None] = []
        for parameters in zip(*(layer.weights()[:4] for layer in layers), strict=True):
            if parameters[0] is None:
                values.append(None)
                buffers.append(None)
                continue
            buffer = gradients.of(*parameters)
            if buffer is None or any(map(_hooked, parameters)):
                return None
            if len(parameters) == 1:
                values.append(parameters[0])
            elif not values and not layers[0].plan.reads_filters(parameters[0].shape):
                values.append(parameters[0].detach().expand(len(parameters), -1, -1, -1, -1))
            else:
                values.append(self._stack(parameters))
            buffers.append(buffer)
        filters = [layer.weights().weight for layer in layers]
        first_use = partial(gradients.first_use, *filters)
        return Direct(filters[0], tuple(values), tuple(buffers), first_use)

    def _stack(self, parameters: tuple[Tensor, ...]) -> Tensor:
        """Return a buffer that will hold the parameters, stacked."""
        first, key = parameters[0], tuple(map(id, parameters))
        form = (len(parameters), *first.shape), first.dtype, first.device
        found = self._stacks.get(key)
        if found is None or (found.shape, found.dtype, found.device) != form:
            found = self._stacks[key] = stacked(*parameters)
        self._copies += zip(found.unbind(), parameters, strict=True)
        return found


def _layers(
    mine: list[Operation], others: list[Operation], grouped: bool
) -> list[tuple[Operation, ...]]:
    """Return the layers of both networks, two together where they can be grouped."""
    if not grouped or len(mine) != len(others):
        return [(each,) for each in {each.conv: each for each in [*mine, *others]}.values()]
    found: list[tuple[Operation, ...]] = []
    for a, b in zip(mine, others, strict=True):
        if a.conv is b.conv:
            found.append((a,))
        elif a.resembles(b):
            found.append((a, b))
        else:
            found += (a,), (b,)
    return found


def _operations(network: nn.Module) -> list[Operation]:
    """Return the layers that can take filters, in the order of the network's modules."""
    found: dict[nn.Module, Operation] = {}
    for module in network.modules():
        layers: Any = getattr(module, "halves", None) or (module,)
        for layer in layers:
            if getattr(layer, "per_sample", False):
                operation = layer.operation()
                found[operation.conv] = operation
    return list(found.values())


def _block(layers: tuple[Operation, ...]) -> Block:
    weights = tuple(each.weights().weight for each in layers)
    return Block(weights, layers[0].plan.kind, layers[0].plan.stride)


def _hooked(parameter: Tensor) -> bool:
    """Return whether somebody wants to see the parameter's gradient when autograd has it."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)
