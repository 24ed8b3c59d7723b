"""Whether modules are unmodified, so that a fused operation may compute them.

A block with hooks, parametrizations, wrappers or replaced modules runs its modules one after the
other, as PyTorch would.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_logger = logging.getLogger(__name__)
_said: set[str] = set()
M = TypeVar("M", bound=nn.Module)


def untouched(module: object, *kinds: type[M]) -> TypeGuard[M]:
    """Return whether a module is of exactly one of these classes, without hooks or overrides."""
    return type(module) in kinds and intact(module, type(module))


def intact(*parts: object) -> bool:
    """Return whether modules are `untouched`: a module, its class, the next module, and so on.

    None and None stand for a module that there is none of.
    """
    if torch_module._has_any_global_hook():
        return False
    for module, kind in zip(parts[::2], parts[1::2], strict=True):
        if kind is None:
            if module is not None:
                return False
        elif (
            not isinstance(module, nn.Module)
            or type(module) is not kind  # a parametrization makes a subclass
            or module._forward_pre_hooks  # old weight_norm, spectral_norm, pruning
            or module._forward_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        ):
            return False
    return True


def plain_convolution(conv: object) -> TypeGuard[nn.Conv2d | nn.ConvTranspose2d]:
    """Return whether the fused operations can compute a convolution or transposed convolution."""
    return (
        untouched(conv, nn.Conv2d, nn.ConvTranspose2d)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def plain_instance_norm(norm: object) -> TypeGuard[nn.InstanceNorm2d]:
    """Return whether a norm is instance norm without weights or running statistics."""
    return untouched(norm, nn.InstanceNorm2d) and not (norm.affine or norm.track_running_stats)


def run_modules(modules: nn.Sequential | Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply modules one after the other; a sequence with hooks is called.

    PyTorch's instance norm of one image has a wrong backward pass on CPUs (2.11, 2.13) for a
    gradient in channels_last; after that module gradients are made contiguous. Not in an exported
    graph, which has no gradient and takes any number of images.
    """
    if isinstance(modules, nn.Module) and not untouched(modules, nn.Sequential):
        return modules(x)
    for module in modules:
        x = module(x)
        norm = isinstance(module, nn.InstanceNorm2d) and not torch.compiler.is_exporting()
        if norm and x.dim() == 4 and len(x) == 1:
            x = x.flatten(1).view(x.shape)  # their gradients are copied where they are not
    return x


def say_plain(block: str) -> bool:
    """Warn, once per class of block, that its modules run unfused; returns True."""
    if block not in _said:
        _said.add(block)
        _logger.warning(
            "%s: hooks or replaced modules: the block runs its modules unfused",
            block,
        )
    return True


# What torch.compiler.assume_constant_result sets, without importing the compiler: the warning is
# then also logged while code is compiled.
say_plain._dynamo_marked_constant = True
