"""Two networks of one architecture run side by side, as one where their layers allow it.

A layer that both networks share runs once, over both batches. Layers of equal shapes run as one
launch with two groups of filters (`fastunit.kernels`), which fills a GPU with small batches.
Whatever else differs (channels, sizes, batch) runs apart, layer by layer.

A layer that can be grouped has `weights`, `settings`, `run` and `per_sample`, as `Conv2dBlock`; a
residual block has `halves`, two such layers, of which the second adds the block's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fastunit.kernels.common.weight_cache import kept
from fastunit.models.discriminator import Discriminator
from fastunit.models.layers import ResBlocks, Weights
from fastunit.models.unfused import untouched
from fastunit.models.unit2018 import ContentEncoder, Decoder
from fastunit.models.vae import check_image

M = TypeVar("M", bound=nn.Module)


class Groupable(Protocol):
    """A layer that can be grouped."""

    @property
    def per_sample(self) -> bool: ...
    def weights(self) -> Weights: ...
    def settings(self) -> tuple: ...
    def run(self, weights: Weights, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


class Both:
    """A batch of images [N, C, H, W] for each of two networks.

    The two may be the same tensor; where their images have one shape they can be joined.
    """

    def __init__(self, x: Tensor, y: Tensor, joined: Tensor | None = None) -> None:
        self.parts, self._joined = (x, y), joined

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what makes an equal one."""
        return *self.parts, self._joined

    def joined(self) -> Tensor:
        """Return both batches as one."""
        if self._joined is None:
            self._joined = torch.cat(self.parts)
        return self._joined

    def apply_joined(self, layer: Callable[..., Tensor], *others: Both) -> Both:
        """Apply a layer to both batches as one."""
        result = layer(*(both.joined() for both in (self, *others)))
        x, y = result.split([len(part) for part in self.parts])
        return Both(x, y, result)

    def apply_shared(self, layer: Callable[..., Tensor], *others: Both) -> Both:
        """Apply a layer whose weights serve both: once, if the batches are one or fit together."""
        boths = self, *others
        if all(x is y for x, y in (both.parts for both in boths)):
            result = layer(*(both.parts[0] for both in boths))
            return Both(result, result)
        x, y = self.parts
        if x.shape[1:] == y.shape[1:]:
            return self.apply_joined(layer, *others)
        return self.apply_apart(layer, layer, *others)

    def apply_apart(
        self, a: Callable[..., Tensor], b: Callable[..., Tensor], *others: Both
    ) -> Both:
        """Apply a layer to each batch."""
        x, y = zip(*(both.parts for both in (self, *others)), strict=True)
        return Both(a(*x), b(*y))


@dataclass(frozen=True)
class Pairing:
    """How pairs of networks are run.

    With `grouped`, layers of equal shapes run in one launch; None is: where that pays, on a GPU.
    With `recompute` only the inputs of blocks are saved, and backward runs the blocks again.
    """

    grouped: bool | None = None
    recompute: bool = False

    def run(self, a: nn.Module, b: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``a(x), b(y)``, equal up to rounding, for sequences of fastunit's layers.

        Where x is y, the layers that both networks share at their beginning run once.
        """
        return self._run(a, b, Both(x, y)).parts

    def run_scales(
        self,
        a: nn.ModuleList,
        b: nn.ModuleList,
        x: Tensor,
        y: Tensor,
        halve: Callable[[Tensor], Tensor],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return what networks a and b, one for each image scale, make of x and y, finest first.

        `halve` makes the images of a scale from those of the one before.
        """
        both, outputs = Both(x, y), []
        for scale, networks in enumerate(zip(a, b, strict=True)):
            if scale:
                both = both.apply_shared(halve)
            outputs.append(self._run(*networks, both).parts)
        mine, others = zip(*outputs, strict=True)
        return mine, others

    def discriminate(
        self, a: Discriminator, b: Discriminator, x: Tensor, y: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return ``a(x), b(y)``, as tuples; with hooks on a or b, by calling them.

        Raises:
            ValueError: images have other channels than their discriminator's.
        """
        if not all(untouched(each, type(each)) for each in (a, b)):
            return tuple(a(x)), tuple(b(y))
        for discriminator, images in ((a, x), (b, y)):
            check_image(images, discriminator.input_dim)
        return self.run_scales(a.cnns, b.cnns, x, y, a.halve)

    def _run(self, a: nn.Module, b: nn.Module, both: Both) -> Both:
        if type(a) is not type(b) or not all(untouched(each, type(each)) for each in (a, b)):
            return both.apply_apart(a, b)  # hooks are called as PyTorch calls them
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

    def _checkpointed(self, a: nn.Module, b: nn.Module, both: Both) -> Both:
        """Return `_block`'s result; the compiler wants tensors in and out of what it recomputes."""

        def block(
            x: Tensor, y: Tensor, joined: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._block(a, b, Both(x, y, joined)).tensors()

        again: Any = checkpoint(
            block, *both.tensors(), use_reentrant=False, preserve_rng_state=False
        )
        return Both(*again)

    def _recomputes(self, layer: nn.Module) -> bool:
        """Return whether backward is to run it again.

        Not with batch norm, whose running statistics would advance twice, nor with dropout, whose
        draw would have to be repeated, which no CUDA graph can do.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return False
        block = hasattr(layer, "halves") or hasattr(layer, "settings")
        once = _has(layer, _BatchNorm) or _has(layer, nn.Dropout)
        return block and not once and _whole(layer)

    def _block(self, a: nn.Module, b: nn.Module, both: Both) -> Both:
        halves, others = getattr(a, "halves", None), getattr(b, "halves", None)
        if halves is None or others is None:
            return self._layer(a, b, both)
        inner = self._layer(halves[0], others[0], both)
        return self._layer(halves[1], others[1], inner, both)

    def _layer(
        self,
        a: Callable[..., Tensor],
        b: Callable[..., Tensor],
        both: Both,
        *residual: Both,
    ) -> Both:
        if a is b and _serves_both(a):
            return both.apply_shared(a, *residual)
        if self._groups(both) and (pair := _groupable(a, b)):
            weights = _stacked(pair[0].weights(), pair[1].weights())
            return both.apply_joined(lambda *inputs: pair[0].run(weights, *inputs), *residual)
        return both.apply_apart(a, b, *residual)

    def _groups(self, both: Both) -> bool:
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
    """Return whether a module of a kind is in the layer, which need not be a module itself."""
    return isinstance(layer, nn.Module) and any(isinstance(m, kind) for m in layer.modules())


def _whole(layer: object) -> bool:
    """Return whether a layer, and all within it, is as it was built: no hooks, nothing replaced."""
    if not getattr(layer, "fuses", True):
        return False
    if not isinstance(layer, nn.Module):
        return True
    return all(
        untouched(each, type(each)) and getattr(each, "fuses", True) for each in layer.modules()
    )


def _is(module: nn.Module, *kinds: type[M]) -> TypeGuard[M]:
    """Return whether a module is of one of these very classes."""
    return type(module) in kinds


def _groupable(a: Any, b: Any) -> tuple[Groupable, Groupable] | None:
    """Return two layers if they can be grouped."""
    if not (hasattr(a, "settings") and hasattr(b, "settings")):
        return None
    alike = a.per_sample and b.per_sample and a.settings() == b.settings()
    return (a, b) if alike else None


def _stacked(mine: Weights, others: Weights) -> Weights:
    weight = kept(_stack, mine.weight, others.weight)
    pairs = zip(mine[1:], others[1:], strict=True)
    return Weights(weight, *(None if p is None else kept(_stack, p, q) for p, q in pairs))


def _stack(p: Tensor, q: Tensor) -> Tensor:
    """Stack two weights along a new first dimension; filters stay channels_last."""
    if p.dim() != 4:
        return torch.stack([p, q])
    return torch.stack([w.permute(0, 2, 3, 1) for w in (p, q)]).permute(0, 1, 4, 2, 3)
