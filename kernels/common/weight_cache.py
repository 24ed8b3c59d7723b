"""What is made from weights, such as casts and layouts: once for as long as the weights stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["forget", "keep_filters", "kept"]


class _Scope:
    """The forms of some weights, and of these forms."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = list(weights)
        self.clear()

    def clear(self) -> None:
        self.forms: dict[tuple, Tensor] = {}
        self.storages = set(map(_storage, self.weights))

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        return all(_storage(tensor) in self.storages for tensor in tensors)


# Not a context variable: on a GPU, backward runs in a thread of its own.
_scopes: list[_Scope] = []
_lock = threading.RLock()


@contextmanager
def keep_filters(weights: Iterable[Tensor]) -> Iterator[None]:
    """Make each form of these weights once inside the block; forms are dropped at its end.

    The weights must not change inside, but after `forget`. Blocks nest; a weight's forms belong
    to the outermost block that names it.
    """
    scope = _Scope(weights)
    with _lock:
        _scopes.append(scope)
    try:
        yield
    finally:
        with _lock:
            _scopes.remove(scope)


def forget(weights: Iterable[Tensor]) -> None:
    """Drop the forms that blocks keep of any of these weights, because they will change."""
    places = set(map(_storage, weights))
    with _lock:
        for scope in _scopes:
            if not places.isdisjoint(map(_storage, scope.weights)):
                scope.clear()


def kept(make: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return ``make(*args)``, made earlier if a block of `keep_filters` has it.

    Only what is made of weights that a block names, or of their forms, is kept: other tensors'
    memory may be used again without a trace, by compiled code for instance. The result may share
    memory with the weights and must not be written to.
    """
    if torch.compiler.is_compiling() or not _scopes:
        return make(*args)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    key = (make, torch.is_grad_enabled(), *map(_identity, args))
    with _lock:
        for scope in _scopes:
            if scope.holds(tensors):
                if key not in scope.forms:
                    scope.forms[key] = form = make(*args)
                    scope.storages.add(_storage(form))
                return scope.forms[key]
    return make(*args)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _identity(value: Any) -> Any:
    """Return what tells a tensor from others: not its object, which views do not share."""
    if not isinstance(value, Tensor):
        return value
    # An optimiser's fused update leaves the version alone, so this catches other changes only.
    version = None if value.is_inference() else value._version
    place = _storage(value), value.storage_offset(), value.shape, value.stride()
    return *place, value.dtype, value.requires_grad, version
