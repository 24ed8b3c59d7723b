"""A running average of a module's weights, taken on the device."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """A copy of a module whose weights follow it: average = d * average + (1 - d) * weights.

    The decay d is ``min(decay, (1 + n) / (10 + n))`` for the n updates made so far, so that the
    first weights are soon forgotten, however long the average finally is. Buffers are copied.

    Nothing waits for the device, and n is counted there: `update` can be captured in a CUDA graph,
    whose replays go on counting.

    Args:
        module: on its device already, and of its final dtype.
        decay: in [0, 1).

    Attributes:
        module: the averaged copy. It needs no gradients.
        updates: n, an int64 scalar on the device.
    """

    def __init__(self, module: M, decay: float) -> None:
        self._source, self._decay = module, decay
        self.module: M = copy.deepcopy(module).requires_grad_(False)
        self._weights, self._buffers = _tensors(module)
        self._averages, self._copies = _tensors(self.module)
        self.updates = torch.zeros((), dtype=torch.int64, device=self._weights[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's weights, as they are now, into the average."""
        n = self.updates.double()
        share = 1 - ((1 + n) / (10 + n)).clamp(max=self._decay)
        # PyTorch's optimisers use these too; they are private by name alone.
        steps = torch._foreach_sub(self._weights, self._averages)  # pyright: ignore[reportPrivateImportUsage]
        share = share.to(steps[0].dtype)  # a tensor: replays ramp, too
        torch._foreach_mul_(steps, share)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(self._averages, steps)  # pyright: ignore[reportPrivateImportUsage]
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    def restart(self) -> None:
        """Let the average be the module as it is now, with no updates made."""
        self.module.load_state_dict(self._source.state_dict())
        self.updates.zero_()


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters and buffers, shared ones once."""
    return list(module.parameters()), list(module.buffers())
