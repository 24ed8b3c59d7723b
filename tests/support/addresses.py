"""Triton's interpreter with every address checked: a memcheck for CPUs.

In `checked_addresses` a kernel that loads from, or stores to, memory outside the tensors it was
given raises OutOfBounds, where the interpreter would read whatever lies there or crash. A tensor's
memory is its whole storage: kernels read the zeros before a frame's first pixel. Masked lanes may
point anywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton
from torch import Tensor, nn
from triton.runtime import interpreter

# Kernels that are given one parameter of a network and reach the others by their distance from it.
# These may access all tensors that exist.
REACHING = {"pack_kernel"}


class OutOfBounds(AssertionError):
    """A kernel accessed memory outside its tensors."""


class _Checked:
    """The interpreter's loads and stores, with the memory that the running kernel may use."""

    def __init__(self, plain: Any) -> None:
        self._plain, self.accesses = plain, 0
        self._kernel, self._starts, self._ends = "", np.empty(0, np.uint64), np.empty(0, np.uint64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def run(self, kernel: str, tensors: Sequence[Tensor]) -> None:
        """Allow the memory of these tensors alone, for a kernel."""
        storages = {tensor.untyped_storage() for tensor in tensors}
        found = sorted((storage.data_ptr(), storage.nbytes()) for storage in storages)
        self._kernel = kernel
        self._starts = np.array([start for start, _ in found], np.uint64)
        self._ends = np.array([start + size for start, size in found], np.uint64)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._check("loads", pointers, mask, np.dtype(dtype).itemsize)
        return self._plain.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        self._check("stores", pointers, mask, value.dtype.itemsize)
        return self._plain.store(pointers, value, mask)

    def atomic_rmw(self, operation: Any, pointers: Any, value: Any, mask: Any, order: Any) -> Any:
        self._check("updates", pointers, mask, value.dtype.itemsize)
        return self._plain.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers: Any, expected: Any, value: Any, order: Any) -> Any:
        self._check("updates", pointers, np.ones_like(pointers, bool), value.dtype.itemsize)
        return self._plain.atomic_cas(pointers, expected, value, order)

    def _check(self, verb: str, pointers: Any, mask: Any, size: int) -> None:
        self.accesses += 1
        addresses = np.asarray(pointers, np.uint64)[np.asarray(mask, bool)]
        if not addresses.size:
            return
        index = np.searchsorted(self._starts, addresses, "right") - 1
        ends = self._ends[np.maximum(index, 0)] if self._ends.size else np.zeros_like(addresses)
        outside = (index < 0) | (addresses + np.uint64(size) > ends)
        if outside.any():
            raise OutOfBounds(
                f"{self._kernel} {verb} {int(outside.sum())} of {addresses.size} elements of "
                f"{size} bytes outside its tensors, first {self._where(addresses[outside][0])}"
            )

    def _where(self, address: np.uint64) -> str:
        """Return how far an address is from the nearest tensor."""
        past = [int(address) - int(end) for end in self._ends if end <= address]
        before = [int(start) - int(address) for start in self._starts if start > address]
        distances = [f"{min(past)} bytes past an end"] if past else []
        distances += [f"{min(before)} bytes before a start"] if before else []
        return ", ".join(distances) or f"at {int(address):#x}; it has no tensors"


@contextmanager
def checked_addresses() -> Iterator[_Checked]:
    """Check every access of every kernel that the interpreter runs inside the block."""
    checked = _Checked(interpreter._interpreter)
    convert = interpreter.GridExecutor._init_args_hst

    def converted(executor: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        found = convert(executor, args, kwargs)
        tensors = [t for t in (*found[0], *found[1].values()) if isinstance(t, Tensor)]
        name = executor.fn.__name__
        if name in REACHING:
            tensors += [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
        checked.run(name, tensors)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", checked)
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", converted)
        # So that the error is ours, not the interpreter's summary of it.
        patch.setattr(triton.knobs.compilation, "front_end_debugging", True)
        yield checked
