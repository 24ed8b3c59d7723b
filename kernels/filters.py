"""What is made from weights, such as casts and layouts: once for as long as the weights stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Not a context variable: on a GPU, backward runs in a thread of its own.
_scopes: list[dict[tuple, tuple[tuple, Tensor]]] = []


@contextmanager
def keep_filters() -> Iterator[None]:
    """Make each form of each weight once inside the block; forms are dropped at its end.

    Weights that were used inside must not change inside. Blocks nest: an inner one finds what
    the outer ones have, and drops its own alone.
    """
    scope: dict[tuple, tuple[tuple, Tensor]] = {}
    _scopes.append(scope)
    try:
        yield
    finally:
        _scopes[:] = [other for other in _scopes if other is not scope]


def kept(make: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return ``make(*args)``, made earlier if a block of `keep_filters` has it.

    The result may share memory with the weights among `args` and must not be written to.
    """
    if torch.compiler.is_compiling() or not _scopes:
        return make(*args)
    key = (make, torch.is_grad_enabled(), *map(_identity, args))
    for scope in _scopes:
        if key in scope:
            return scope[key][1]
    form = make(*args)
    _scopes[-1][key] = args, form  # holding the weights, so that nothing else takes their place
    return form


def _identity(value: Any) -> Any:
    """Return what tells a tensor from others: not its object, which views do not share."""
    if not isinstance(value, Tensor):
        return value
    # An optimiser's fused update leaves the version alone, so this catches other changes only.
    version = None if value.is_inference() else value._version
    place = value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride()
    return *place, value.dtype, value.requires_grad, version
