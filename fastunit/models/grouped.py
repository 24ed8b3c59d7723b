"""Grouped execution: both domains' networks run layer by layer, in one launch where possible.

A layer that both networks share runs once, over both batches. Layers of equal shapes run in one
launch with two groups of filters (`fastunit.kernels`), so that small batches fill a GPU. All other
pairs of layers (different channels, image sizes or batch sizes) run separately.

A layer that can be grouped has the members of `Groupable`, as `Conv2dBlock` does. A
residual block has `halves`: two such layers, the second of which adds the block's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fastunit.kernels.common import eager, runtime
from fastunit.kernels.conv.layouts import Filters
from fastunit.models.discriminator import Discriminator
from fastunit.models.layers import ResBlocks, Weights
from fastunit.models.unfused import untouched
from fastunit.models.unit2018 import ContentEncoder, Decoder
from fastunit.models.vae import check_image

M = TypeVar("M", bound=nn.Module)
Store = dict[tuple[int, ...], Filters]  # by the identity of a layer, or of two that are grouped


class Groupable(Protocol):
    """A layer that can be grouped."""

    @property
    def per_sample(self) -> bool: ...
    def weights(self) -> Weights: ...
    @property
    def convolution(self) -> tuple[str, int]: ...
    def settings(self) -> tuple: ...
    def run(self, weights: Weights, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


class BatchPair:
    """A batch of images [N, C, H, W] for each of two networks.

    Both may be the same tensor. They can be concatenated if [C, H, W] are equal.
    """

    def __init__(self, x: Tensor, y: Tensor, joined: Tensor | None = None) -> None:
        self.parts, self._joined = (x, y), joined

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the constructor's arguments."""
        return *self.parts, self._joined

    def joined(self) -> Tensor:
        """Return both batches concatenated."""
        if self._joined is None:
            self._joined = torch.cat(self.parts)
        return self._joined

    def apply_joined(self, layer: Callable[..., Tensor], *others: BatchPair) -> BatchPair:
        """Apply a layer to both batches, concatenated."""
        result = layer(*(both.joined() for both in (self, *others)))
        x, y = result.split([len(part) for part in self.parts])
        return BatchPair(x, y, result)

    def apply_shared(self, layer: Callable[..., Tensor], *others: BatchPair) -> BatchPair:
        """Apply a layer that both networks share: once, if the batches can be concatenated."""
        boths = self, *others
        if all(x is y for x, y in (both.parts for both in boths)):
            result = layer(*(both.parts[0] for both in boths))
            return BatchPair(result, result)
        x, y = self.parts
        if x.shape[1:] == y.shape[1:]:
            return self.apply_joined(layer, *others)
        return self.apply_apart(layer, layer, *others)

    def apply_apart(
        self, a: Callable[..., Tensor], b: Callable[..., Tensor], *others: BatchPair
    ) -> BatchPair:
        """Apply layer `a` to the first batch and `b` to the second."""
        x, y = zip(*(both.parts for both in (self, *others)), strict=True)
        return BatchPair(a(*x), b(*y))


@dataclass(frozen=True)
class GroupedExecution:
    """How two networks are run together.

    Attributes:
        grouped: whether layers of equal shapes run in one launch; None: on a GPU.
        recompute: save only the inputs of blocks, and run the blocks again in backward.
        filters: the layers' filters, where they were laid out before (`packed.NetworkFilters`).
    """

    grouped: bool | None = None
    recompute: bool = False
    filters: Store = field(default_factory=dict, compare=False, repr=False)

    def run(self, a: nn.Module, b: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a(x), b(y)`` up to rounding, for sequences of fastunit's layers.

        If x is y, leading layers that both networks share run once, on one batch.
        """
        return self._run(a, b, BatchPair(x, y)).parts

    def run_scales(
        self,
        a: nn.ModuleList,
        b: nn.ModuleList,
        x: Tensor,
        y: Tensor,
        halve: Callable[[Tensor], Tensor],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the outputs of a for x and of b for y, per scale, finest first.

        a and b hold a network for each scale; `halve` downsamples the images from one to the next.
        """
        both, outputs = BatchPair(x, y), []
        for scale, networks in enumerate(zip(a, b, strict=True)):
            if scale:
                both = both.apply_shared(halve)
            outputs.append(self._run(*networks, both).parts)
        mine, others = zip(*outputs, strict=True)
        return mine, others

    def discriminate(
        self, a: Discriminator, b: Discriminator, x: Tensor, y: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return ``a(x), b(y)`` as tuples. Discriminators with hooks are called separately.

        Raises:
            ValueError: images do not have their discriminator's channels.
        """
        if not all(untouched(each, type(each)) for each in (a, b)):
            return tuple(a(x)), tuple(b(y))
        for discriminator, images in ((a, x), (b, y)):
            check_image(images, discriminator.input_dim)
        return self.run_scales(a.cnns, b.cnns, x, y, a.halve)

    def _run(self, a: nn.Module, b: nn.Module, both: BatchPair) -> BatchPair:
        if type(a) is not type(b) or not all(untouched(each, type(each)) for each in (a, b)):
            return both.apply_apart(a, b)  # so that PyTorch calls the hooks
        if _is(a, ContentEncoder, Decoder, ResBlocks) and _is(b, type(a)):
            return self._run(a.model, b.model, both)
        if _is(a, nn.Sequential) and _is(b, nn.Sequential) and len(a) == len(b):
            for layer, other in zip(a, b, strict=True):
                both = self._run(layer, other, both)
            return both
        if type(a) is nn.Identity:
            return both
        if self._recomputes(a) and _whole(b):
            return self._checkpointed(a, b, both)
        return self._block(a, b, both)

    def _checkpointed(self, a: nn.Module, b: nn.Module, both: BatchPair) -> BatchPair:
        """Return `_block`'s result, recomputed in backward; torch.compile needs tensors."""

        def block(
            x: Tensor, y: Tensor, joined: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._block(a, b, BatchPair(x, y, joined)).tensors()

        again: Any = checkpoint(
            block, *both.tensors(), use_reentrant=False, preserve_rng_state=False
        )
        return BatchPair(*again)

    def _recomputes(self, layer: nn.Module) -> bool:
        """Return whether backward runs the layer again.

        Not with batch norm, whose running statistics would be updated twice, nor with dropout,
        whose mask would have to be drawn again, which is impossible in a CUDA graph.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return False
        block = hasattr(layer, "halves") or hasattr(layer, "settings")
        once = _has(layer, _BatchNorm) or _has(layer, nn.Dropout)
        return block and not once and _whole(layer)

    def _block(self, a: nn.Module, b: nn.Module, both: BatchPair) -> BatchPair:
        halves, others = getattr(a, "halves", None), getattr(b, "halves", None)
        if halves is None or others is None:
            return self._layer(a, b, both)
        inner = self._layer(halves[0], others[0], both)
        return self._layer(halves[1], others[1], inner, both)

    def _layer(
        self,
        a: Callable[..., Tensor],
        b: Callable[..., Tensor],
        both: BatchPair,
        *residual: BatchPair,
    ) -> BatchPair:
        if a is b and _serves_both(a):
            return both.apply_shared(self._with_filters(a), *residual)
        if self._groups(both) and (pair := groupable(a, b)):
            weights = self._weights(*pair)
            return both.apply_joined(lambda *inputs: pair[0].run(weights, *inputs), *residual)
        return both.apply_apart(self._with_filters(a), self._with_filters(b), *residual)

    def _weights(self, *layers: Groupable) -> Weights:
        """Return the weights of layers, stacked where there are two, with filters if laid out."""
        filters = self.filters.get(tuple(map(id, layers)))
        if filters is not None and filters.direct is not None:
            if runtime.recording() or eager.only_autograd():
                weight, *others = filters.direct.values
                assert weight is not None
                return Weights(weight, *others, filters=filters)
            filters = filters._replace(direct=None)
        first, *others = (layer.weights() for layer in layers)
        return (_stack_all(first, *others) if others else first)._replace(filters=filters)

    def _with_filters(self, layer: Any) -> Callable[..., Tensor]:
        """Return the layer, or a function that runs it with filters that were laid out before."""
        if (id(layer),) not in self.filters or not layer.per_sample:
            return layer
        return partial(layer.run, self._weights(layer))

    def _groups(self, both: BatchPair) -> bool:
        x, y = both.parts
        if x.shape != y.shape:
            return False
        if self.grouped is not None:
            return self.grouped
        return x.is_cuda


def _serves_both(layer: object) -> bool:
    """Return whether one call of a layer may serve both batches: no batch norm, no hooks."""
    blocks = getattr(layer, "halves", None) or (layer,)
    if all(getattr(block, "per_sample", False) for block in blocks):
        return True
    return not _has(layer, _BatchNorm) and _whole(layer)


def _has(layer: object, kind: type) -> bool:
    """Return whether a layer contains a module of a class; the layer may be no module itself."""
    return isinstance(layer, nn.Module) and any(isinstance(m, kind) for m in layer.modules())


def _whole(layer: object) -> bool:
    """Return whether a layer and its submodules are unmodified: no hooks, nothing replaced."""
    if not getattr(layer, "fuses", True):
        return False
    if not isinstance(layer, nn.Module):
        return True
    return all(
        untouched(each, type(each)) and getattr(each, "fuses", True) for each in layer.modules()
    )


def _is(module: nn.Module, *kinds: type[M]) -> TypeGuard[M]:
    """Return whether a module is of exactly one of these classes, not of a subclass."""
    return type(module) in kinds


def groupable(a: Any, b: Any) -> tuple[Groupable, Groupable] | None:
    """Return the two layers if they can be grouped, else None."""
    if not (hasattr(a, "settings") and hasattr(b, "settings")):
        return None
    alike = a.per_sample and b.per_sample and a.settings() == b.settings()
    return (a, b) if alike else None


def _stack_all(mine: Weights, others: Weights) -> Weights:
    def both(p: Tensor | None, q: Tensor | None) -> Tensor | None:
        return None if p is None or q is None else stacked(p, q)

    return Weights(
        stacked(mine.weight, others.weight),
        both(mine.bias, others.bias),
        both(mine.gamma, others.gamma),
        both(mine.beta, others.beta),
    )


def stacked(*weights: Tensor) -> Tensor:
    """Stack weights along a new first dimension; filters remain channels_last."""
    if weights[0].dim() != 4:
        return torch.stack(weights)
    return torch.stack([w.permute(0, 2, 3, 1) for w in weights]).permute(0, 1, 4, 2, 3)
