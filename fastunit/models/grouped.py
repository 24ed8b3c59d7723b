"""Grouped execution: both domains' networks run layer by layer, in one launch where possible.

A layer that both networks share runs once, over both batches. Layers of equal shapes run in one
launch with two groups of filters (`fastunit.kernels`), so that small batches fill a GPU. All other
pairs of layers (different channels, image sizes or batch sizes) run separately.

Only layers that are one fused operation (`chain.Operation`) are grouped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fastunit.kernels.common import branches
from fastunit.kernels.conv.block import apply
from fastunit.kernels.conv.linked import Next
from fastunit.models.chain import (
    Image,
    Operation,
    Program,
    Step,
    Store,
    Weights,
    call,
    image_of,
    links,
)
from fastunit.models.discriminator import Discriminator
from fastunit.models.norms import AdaptiveInstanceNorm2d
from fastunit.models.unfused import untouched
from fastunit.models.vae import check_image

Outputs = tuple[Tensor, ...]
Steps = list[tuple[Step, Step, Next | None]]  # each network's layer, and what reads their results


class BatchPair:
    """A batch of images [N, C, H, W] for each of two networks, apart or concatenated.

    Both may be the same tensor. They can be concatenated if [C, H, W] are equal.
    """

    def __init__(self, x: Image, y: Image, counts: tuple[int, int] | None = None) -> None:
        self._parts: tuple[Image, Image] | None = (x, y)
        self._joined: Image | None = None
        self.counts = counts or (len(image_of(x)), len(image_of(y)))

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

    def tensors(self) -> list[Tensor]:
        """Return the images as they are held: apart, concatenated or both."""
        held = (*(self._parts or ()), *(() if self._joined is None else (self._joined,)))
        return [image_of(each) for each in held]

    def joined(self) -> Image:
        """Return both batches concatenated."""
        if self._joined is None:
            self._joined = torch.cat([image_of(part) for part in self.parts])
        return self._joined

    def is_one(self) -> bool:
        """Return whether both batches are the same tensor."""
        return self._joined is None and self.parts[0] is self.parts[1]

    def fits_together(self) -> bool:
        """Return whether the batches can be concatenated."""
        if self._joined is not None:
            return True
        x, y = self.parts
        return image_of(x).shape[1:] == image_of(y).shape[1:]

    def is_cuda(self) -> bool:
        """Return whether the images are on a GPU."""
        return image_of(self.parts[0] if self._joined is None else self._joined).is_cuda

    def apply_shared(self, layer: Callable[[Tensor], Tensor]) -> BatchPair:
        """Apply a function to both batches: once, if they can be concatenated."""
        if self.is_one():
            x = layer(image_of(self.parts[0]))
            return BatchPair(x, x)
        if self.fits_together():
            return BatchPair.of_joined(layer(image_of(self.joined())), self.counts)
        x, y = self.parts
        return BatchPair(layer(image_of(x)), layer(image_of(y)))


@dataclass(frozen=True)
class GroupedExecution:
    """How two networks are run together.

    Attributes:
        grouped: whether layers of equal shapes run in one launch; None: on a GPU.
        recompute: save only the inputs of blocks, and run the blocks again in backward.
        filters: the layers' filters, where they were laid out before (`packed.NetworkFilters`).
        programs: the layers of the networks that were run, by the networks' identities.
    """

    grouped: bool | None = None
    recompute: bool = False
    filters: Store = field(default_factory=dict, compare=False, repr=False)
    programs: dict[int, Program] = field(default_factory=dict, compare=False, repr=False)

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
        forks = branches.ON and self._forks(a, b, both)
        if forks and both.fits_together():
            both.joined()  # not in a branch: halve reads it too
        for scale, networks in enumerate(zip(a, b, strict=True)):
            if scale:
                both = both.apply_shared(halve)
            with branches.branch(scale, both.tensors()) if forks else nullcontext():
                outputs.append(self.run(*networks, both))
        if forks:
            branches.join(output for pair in outputs for output in pair)
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

    def run(self, a: nn.Module, b: nn.Module, both: BatchPair) -> tuple[Tensor, Tensor]:
        """Return each network's output for its batch, for sequences of fastunit's layers.

        They are ``a(x), b(y)`` up to rounding. If both batches are one tensor, leading layers that
        the networks share run once.
        """
        mine, others = self._program(a), self._program(b)
        if len(mine.steps) != len(others.steps):
            x, y = both.parts
            return a(image_of(x)), b(image_of(y))
        grouping = both.is_cuda() if self.grouped is None else self.grouped
        if not (self.recompute or grouping or mine.shares(others)):
            x, y = both.parts
            return mine(image_of(x), self.filters), others(image_of(y), self.filters)
        linked = links(image_of(both.parts[0]))
        readers = mine.readers if linked else [None] * len(mine.readers)
        steps = [*zip(mine.steps, others.steps, readers, strict=True)]
        apply_steps = self._recomputed if self.recompute else self._apply
        both = apply_steps(steps, both, grouping)
        x, y = both.parts
        return image_of(x), image_of(y)

    def _program(self, network: nn.Module) -> Program:
        """Return the network's layers, found again only if a module has changed."""
        found = self.programs.get(id(network))
        if found is None or found.network is not network or not found.is_current():
            found = self.programs[id(network)] = Program(network)
        return found

    def _recomputed(self, steps: Steps, both: BatchPair, grouping: bool) -> BatchPair:
        """Apply the steps; backward runs them again from the inputs of blocks."""
        place = 0
        while place < len(steps):
            block = steps[place : place + 1 + _is_half(steps, place)]
            if torch.is_grad_enabled() and _can_recompute(block):
                again: Any = checkpoint
                both = again(
                    self._apply, block, both, grouping,
                    use_reentrant=False, preserve_rng_state=False,
                )  # fmt: skip
            else:
                both = self._apply(block, both, grouping)
            place += len(block)
        return both

    def _apply(self, steps: Steps, both: BatchPair, grouping: bool) -> BatchPair:
        """Apply the layers of both networks; those that run as one, to both batches at once."""
        before = both
        for a, b, follow in steps:
            before, given = both, before if a.adds and b.adds else None
            weights = None
            if grouping or a.layer is b.layer:
                weights = self._weights_of_both(a, b, both, grouping)
            if weights is None or a.operation is None:
                both = self._apply_apart(a, b, follow, both, given)
                continue
            one = both.is_one() and (given is None or given.is_one()) and a.layer is b.layer
            x = both.parts[0] if one else both.joined()
            residual = None
            if given is not None:
                residual = image_of(given.parts[0] if one else given.joined())
            w, bias, gamma, beta, filters = weights
            y = apply(
                a.operation.plan, x, w, bias, gamma, beta, None, residual,
                filters=filters, follow=follow,
            )  # fmt: skip
            counts = both.counts
            both = BatchPair(y, y, counts) if one else BatchPair.of_joined(y, counts)
        return both

    def _weights_of_both(self, a: Step, b: Step, both: BatchPair, grouping: bool) -> Weights | None:
        """Return the weights with which two layers run as one on these images; None: they do not.

        A layer that both networks share has weights for all; two that differ in their weights
        alone have a group each.
        """
        mine, other = a.operation, b.operation
        if mine is None or other is None or not both.fits_together():
            return None
        if a.layer is b.layer:
            return mine.weights(self.filters)
        if not (grouping and both.counts[0] == both.counts[1] and mine.resembles(other)):
            return None
        return self._weights(mine, other)

    def _weights(self, mine: Operation, other: Operation) -> Weights:
        """Return the weights of two layers, stacked, with filters if they were laid out."""
        filters = self.filters.get((id(mine.conv), id(other.conv)))
        if filters is not None and filters.direct is not None:
            weight, *others = filters.direct.values
            assert weight is not None
            return Weights(weight, *others, filters=filters)
        pairs = zip(mine.weights()[:4], other.weights()[:4], strict=True)
        weight, *others = (None if p is None or q is None else stacked(p, q) for p, q in pairs)
        assert weight is not None
        return Weights(weight, *others, filters=filters)

    def _apply_apart(
        self, a: Step, b: Step, follow: Next | None, both: BatchPair, given: BatchPair | None
    ) -> BatchPair:
        if a.layer is b.layer and a.operation is None and given is None and _serves_both(a.layer):
            return both.apply_shared(a.layer)
        parts, residuals = both.parts, (None, None) if given is None else given.parts
        x = call(a, self.filters, follow, parts[0], residuals[0])
        return BatchPair(x, call(b, self.filters, follow, parts[1], residuals[1]), both.counts)

    def _forks(self, a: nn.ModuleList, b: nn.ModuleList, both: BatchPair) -> bool:
        """Return whether each scale runs in a branch of a CUDA graph: they must share nothing."""
        if not branches.may_fork(both.tensors()[0], len(a)):
            return False
        scales = [
            {tensor for net in nets for tensor in (*net.parameters(), *net.buffers())}
            for nets in zip(a, b, strict=True)
        ]
        shared = sum(map(len, scales)) > len(set[Tensor]().union(*scales))
        grouping = both.is_cuda() if self.grouped is None else self.grouped
        return grouping and not both.is_one() and not shared


def _is_half(steps: Steps, place: int) -> bool:
    """Return whether the step at a place is the first of a residual block's two."""
    if place + 1 == len(steps):
        return False
    return steps[place + 1][0].adds and steps[place + 1][1].adds


def _can_recompute(steps: Steps) -> bool:
    """Return whether backward can run these layers again.

    Not with batch norm, whose running statistics would be updated twice, nor with dropout, whose
    mask would have to be drawn again, which is impossible in a CUDA graph; nor with AdaIN, whose
    styles are other ones by then; nor with hooks.
    """
    return all(
        each.operation is not None
        or (
            hasattr(each.layer, "per_sample")
            and not _has(each.layer, _BatchNorm)
            and not _has(each.layer, AdaptiveInstanceNorm2d)
            and _whole(each.layer)
        )
        for a, b, _ in steps
        for each in (a, b)
    )


def _serves_both(layer: object) -> bool:
    """Return whether one call of a layer may serve both batches: no batch norm, no hooks."""
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


def stacked(*weights: Tensor) -> Tensor:
    """Stack weights along a new first dimension; filters remain channels_last."""
    if weights[0].dim() != 4:
        return torch.stack(weights)
    return torch.stack([w.permute(0, 2, 3, 1) for w in weights]).permute(0, 1, 4, 2, 3)
