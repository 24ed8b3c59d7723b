"""Whether modules are as they were built, so that one fused operation may stand for them.

Hooks, parametrizations, wrappers and replacements are what people put on PyTorch's modules; a
block that has any runs its modules one after the other, as PyTorch would.
"""

from __future__ import annotations

import logging
from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

_logger = logging.getLogger(__name__)
_said: set[str] = set()
M = TypeVar("M", bound=nn.Module)


def untouched(module: object, *kinds: type[M]) -> TypeGuard[M]:
    """Return whether calling a module is the forward of one of these very classes, and no more."""
    return (
        isinstance(module, nn.Module)
        and type(module) in kinds  # a parametrization makes a subclass
        and not module._forward_pre_hooks  # old weight_norm, spectral_norm, pruning
        and not module._forward_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
        and not torch_module._has_any_global_hook()
    )


def plain_convolution(conv: object) -> TypeGuard[nn.Conv2d | nn.ConvTranspose2d]:
    """Return whether a convolution, or a transposed one, is what the fused operations compute."""
    return (
        untouched(conv, nn.Conv2d, nn.ConvTranspose2d)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def plain_instance_norm(norm: object) -> TypeGuard[nn.InstanceNorm2d]:
    """Return whether a norm is instance norm without weights or running statistics."""
    return untouched(norm, nn.InstanceNorm2d) and not (norm.affine or norm.track_running_stats)


def say_plain(block: str) -> bool:
    """Say once for each kind of block that its modules run as they are."""
    if block not in _said:
        _said.add(block)
        _logger.warning(
            "%s: hooks or replaced modules: the block runs its modules as they are, not fused",
            block,
        )
    return True


# As torch.compiler.assume_constant_result, which imports the whole compiler: said when code is
# compiled, too.
say_plain._dynamo_marked_constant = True
