"""Fresh memory full of NaN, so that what nothing has written cannot pass for a result.

PyTorch can fill it too, but only together with its deterministic algorithms, which are others
than those that users run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors

ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_permuted"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let every allocator of uninitialised memory fill it: with NaN, integers with their largest.

    Only for calls from Python; no dispatch mode does it, since under one operations would take
    other paths than they usually do.
    """
    _device_constructors()  # `with torch.device(...)` keeps them from its first use on
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ALLOCATORS:
            patch.setattr(owner, name, _filling(getattr(owner, name)))
        yield


def _filling(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(allocate)
    def filled(*args: object, **kwargs: object) -> Tensor:
        tensor = allocate(*args, **kwargs)
        with torch.no_grad():  # it may be a leaf
            return tensor.fill_(_extreme(tensor.dtype))

    return filled


def _extreme(dtype: torch.dtype) -> float:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max
