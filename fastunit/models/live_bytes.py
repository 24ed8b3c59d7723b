"""Counting of live bytes, while networks run on tensors without data (`FakeTensorMode`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GLIBC_MAPS_FROM = 32 * 2**20  # bytes; less comes from the heap (the limit of M_MMAP_THRESHOLD)
HEAP_GROWTH = 1.3  # heap size / bytes in use; 1.2 to 1.46 were measured (glibc 2.36)
CUDA_BLOCK = 512  # bytes; PyTorch's allocator rounds up to multiples
WEIGHTS, OPTIMIZER, GRADIENTS, OTHER = range(4)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages created while it is active, and their peak."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self._block = device, CUDA_BLOCK if device.type == "cuda" else 1
        self._known: dict[int, tuple[int, int]] = {}  # storage -> bytes, purpose
        self._live = [0, 0, 0, 0]
        self._heap = 0
        self.restart()

    def restart(self) -> None:
        """Reset the peak to the current bytes."""
        self.peak, self.peak_resident, self._peak_heap = [0, 0, 0, 0], 0, 0
        self._note_peak()

    def label(self, tensors: Iterable[Any], what: int) -> None:
        """Set the purpose of the tensors' storages, which is OTHER until then."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else None
            if key in self._known:
                count, before = self._known[key]
                self._known[key] = count, what
                self._live[before] -= count
                self._live[what] += count

    def label_gradient(self, parameter: Tensor) -> None:
        """Label the parameter's gradient as one."""
        self.label([parameter.grad], GRADIENTS)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func.namespace == "fastunit":
            result = self._run_inside(func, *args)
        else:
            result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _run_inside(self, func: Any, *args: Any) -> Any:
        """Run a fused operation's body so that its temporaries are counted; launches no kernel."""
        with self:
            return _body(func)(*args)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        count = -(-storage.nbytes() // self._block) * self._block
        self._known[key] = count, OTHER
        self._live[OTHER] += count
        if count < GLIBC_MAPS_FROM:
            self._heap += count
        self._note_peak()
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        count, what = self._known.pop(key)
        self._live[what] -= count
        if count < GLIBC_MAPS_FROM:
            self._heap -= count

    def _note_peak(self) -> None:
        total = sum(self._live)
        if total > sum(self.peak):
            self.peak = list(self._live)
        self._peak_heap = max(self._peak_heap, self._heap)  # a heap with gaps does not shrink
        resident = total - self._heap + round(HEAP_GROWTH * self._peak_heap)
        self.peak_resident = max(self.peak_resident, resident)


def _body(func: Any) -> Callable[..., Any]:
    """Return the implementation of one of fastunit's operators, the same for all devices."""
    kernel = torch.library.get_kernel(func, "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *args: kernel.call_boxed(keys, *args)
