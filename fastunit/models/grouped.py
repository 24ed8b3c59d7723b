"""Grouped execution: both domains' networks run layer by layer, in one launch where possible.

A layer that both networks share runs once, over both batches. Layers of equal shapes run in one
launch with two groups of filters (`fastunit.kernels`), so that small batches fill a GPU. All other
pairs of layers (different channels, image sizes or batch sizes) run separately.

A layer that can be grouped is a `chain.Fused`, as `Conv2dBlock`. A residual block has `halves`: two
such layers, the second of which adds the block's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fastunit.kernels.common.weight_cache import kept
from fastunit.kernels.conv.linked import Next, Padded
from fastunit.models.chain import Fused, Unit, Weights, call, image_of, links, reader, units
from fastunit.models.discriminator import Discriminator
from fastunit.models.unfused import untouched
from fastunit.models.vae import check_image

Image = Tensor | Padded
Outputs = tuple[Tensor, ...]


class BatchPair:
    """A batch of images [N, C, H, W] for each of two networks, apart or concatenated.

    Both may be the same tensor. They can be concatenated if [C, H, W] are equal.
    """

    def __init__(self, x: Image, y: Image) -> None:
        self._parts: tuple[Image, Image] | None = (x, y)
        self._joined: Image | None = None
        self.counts = len(image_of(x)), len(image_of(y))

    @classmethod
    def of_joined(cls, joined: Image, counts: tuple[int, int]) -> BatchPair:
        """Return the pair whose batches, of `counts` images, are concatenated already."""
        both = cls.__new__(cls)
        both._parts, both._joined, both.counts = None, joined, counts
        return both

    @property
    def parts(self) -> tuple[Image, Image]:
        """Each network's batch."""
        if self._parts is None:
            assert self._joined is not None
            x, y = image_of(self._joined).split(self.counts)
            self._parts = x, y
        return self._parts

    def joined(self) -> Image:
        """Return both batches concatenated."""
        if self._joined is None:
            self._joined = torch.cat([image_of(part) for part in self.parts])
        return self._joined

    def is_one(self) -> bool:
        """Return whether both batches are the same tensor."""
        return self._joined is None and self.parts[0] is self.parts[1]

    def sizes(self) -> tuple[torch.Size, torch.Size]:
        """Return the sizes [C, H, W] of each network's images."""
        if self._joined is not None:
            size = image_of(self._joined).shape[1:]
            return size, size
        x, y = self.parts
        return image_of(x).shape[1:], image_of(y).shape[1:]

    def apply_joined(self, layer: Callable[..., Image], *others: BatchPair) -> BatchPair:
        """Apply a layer to both batches, concatenated."""
        result = layer(self.joined(), *(image_of(other.joined()) for other in others))
        return BatchPair.of_joined(result, self.counts)

    def apply_shared(self, layer: Callable[..., Image], *others: BatchPair) -> BatchPair:
        """Apply a layer that both networks share: once, if the batches can be concatenated."""
        if self.is_one() and all(other.is_one() for other in others):
            result = layer(self.parts[0], *(image_of(other.parts[0]) for other in others))
            return BatchPair(result, result)
        x, y = self.sizes()
        if x == y:
            return self.apply_joined(layer, *others)
        return self.apply_apart(layer, layer, *others)

    def apply_apart(
        self, a: Callable[..., Image], b: Callable[..., Image], *others: BatchPair
    ) -> BatchPair:
        """Apply layer `a` to the first batch and `b` to the second."""
        x, y = (
            layer(self.parts[place], *(image_of(other.parts[place]) for other in others))
            for place, layer in enumerate((a, b))
        )
        return BatchPair(x, y)


@dataclass(frozen=True)
class GroupedExecution:
    """How two networks are run together.

    Attributes:
        grouped: whether layers of equal shapes run in one launch; None: on a GPU.
        recompute: save only the inputs of blocks, and run the blocks again in backward.
    """

    grouped: bool | None = None
    recompute: bool = False

    def run(self, a: nn.Module, b: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a(x), b(y)`` up to rounding, for sequences of fastunit's layers.

        If x is y, leading layers that both networks share run once, on one batch.
        """
        return self._outputs(a, b, BatchPair(x, y))

    def run_scales(
        self,
        a: nn.ModuleList,
        b: nn.ModuleList,
        x: Tensor,
        y: Tensor,
        halve: Callable[[Tensor], Tensor],
    ) -> tuple[Outputs, Outputs]:
        """Return the outputs of a for x and of b for y, per scale, finest first.

        a and b hold a network for each scale; `halve` downsamples the images from one to the next.
        """
        both, outputs = BatchPair(x, y), []
        for scale, networks in enumerate(zip(a, b, strict=True)):
            if scale:
                both = both.apply_shared(halve)
            outputs.append(self._outputs(*networks, both))
        mine, others = zip(*outputs, strict=True)
        return mine, others

    def discriminate(
        self, a: Discriminator, b: Discriminator, x: Tensor, y: Tensor
    ) -> tuple[Outputs, Outputs]:
        """Return ``a(x), b(y)`` as tuples. Discriminators with hooks are called separately.

        Raises:
            ValueError: images do not have their discriminator's channels.
        """
        if not all(untouched(each, type(each)) for each in (a, b)):
            return tuple(a(x)), tuple(b(y))
        for discriminator, images in ((a, x), (b, y)):
            check_image(images, discriminator.input_dim)
        return self.run_scales(a.cnns, b.cnns, x, y, a.halve)

    def _outputs(self, a: nn.Module, b: nn.Module, both: BatchPair) -> tuple[Tensor, Tensor]:
        mine, others = units(a), units(b)
        if len(mine) != len(others):
            both = both.apply_apart(a, b)
        else:
            linked = links(image_of(both.parts[0]))
            for place, (unit, other) in enumerate(zip(mine, others, strict=True)):
                follow = reader(mine, place + 1) if linked else None
                run = self._again if self._recomputes(unit, other) else self._unit
                both = run(unit, other, both, follow)
        x, y = both.parts
        return image_of(x), image_of(y)

    def _again(self, a: Unit, b: Unit, both: BatchPair, follow: Next | None) -> BatchPair:
        """Return `_unit`'s result, computed again in backward."""
        run: Any = checkpoint
        return run(
            self._unit, a, b, both, follow, use_reentrant=False, preserve_rng_state=False
        )  # fmt: skip

    def _recomputes(self, *both: Unit) -> bool:
        """Return whether backward runs the layers again.

        Not with batch norm, whose running statistics would be updated twice, nor with dropout,
        whose mask would have to be drawn again, which is impossible in a CUDA graph.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return False
        return all(
            hasattr(layer, "settings")
            and not _has(layer, _BatchNorm)
            and not _has(layer, nn.Dropout)
            and _whole(layer)
            for unit in both
            for layer in unit
        )

    def _unit(self, a: Unit, b: Unit, both: BatchPair, follow: Next | None) -> BatchPair:
        if len(a) == 1 or len(b) == 1:
            return self._layer(a[0], b[0], both, follow)
        inner = self._layer(a[0], b[0], both, a[1].reads() if follow else None)
        return self._layer(a[1], b[1], inner, follow, both)

    def _layer(
        self, a: Any, b: Any, both: BatchPair, follow: Next | None, *residual: BatchPair
    ) -> BatchPair:
        if a is b and _serves_both(a):
            return both.apply_shared(partial(_call, a, follow), *residual)
        if self._groups(both) and groupable(a, b):
            weights = _stacked(a.weights(), b.weights())
            return both.apply_joined(partial(_run, a, weights, follow), *residual)
        return both.apply_apart(partial(_call, a, follow), partial(_call, b, follow), *residual)

    def _groups(self, both: BatchPair) -> bool:
        if both.counts[0] != both.counts[1] or len(set(both.sizes())) > 1:
            return False
        return image_of(both.parts[0]).is_cuda if self.grouped is None else self.grouped


def _call(layer: Any, follow: Next | None, x: Image, residual: Tensor | None = None) -> Image:
    return call(layer, x, residual, follow)


def _run(
    layer: Fused, weights: Weights, follow: Next | None, x: Image, residual: Tensor | None = None
) -> Image:
    return layer.run(weights, x, residual, follow)


def _serves_both(layer: object) -> bool:
    """Return whether one call of a layer may serve both batches: no batch norm, no hooks."""
    if getattr(layer, "per_sample", False):
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


def groupable(a: Any, b: Any) -> bool:
    """Return whether two layers can run in one launch."""
    if not (hasattr(a, "settings") and hasattr(b, "settings")):
        return False
    return a.per_sample and b.per_sample and a.settings() == b.settings()


def _stacked(mine: Weights, others: Weights) -> Weights:
    weight = kept(_stack, mine.weight, others.weight)
    pairs = zip(mine[1:], others[1:], strict=True)
    return Weights(weight, *(None if p is None else kept(_stack, p, q) for p, q in pairs))


def _stack(p: Tensor, q: Tensor) -> Tensor:
    """Stack two weights along a new first dimension; filters remain channels_last."""
    if p.dim() != 4:
        return torch.stack([p, q])
    return torch.stack([w.permute(0, 2, 3, 1) for w in (p, q)]).permute(0, 1, 4, 2, 3)
