"""Exponential moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """Exponential moving average of a module: average = d * average + (1 - d) * weights.

    The decay d is ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the initial weights
    are forgotten quickly even with a large `decay`. Buffers are copied.

    `update` does not synchronize with the device and counts n there, so it can be captured in a
    CUDA graph; replays continue to count.

    Args:
        module: on its device and of its final dtype.
        decay: in [0, 1).

    Attributes:
        module: the averaged copy, without gradients.
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
        """Update the average with the module's current weights."""
        n = self.updates.double()
        share = 1 - ((1 + n) / (10 + n)).clamp(max=self._decay)
        # PyTorch's optimizers use these functions too; they are private in name only.
        steps = torch._foreach_sub(self._weights, self._averages)  # pyright: ignore[reportPrivateImportUsage]
        share = share.to(steps[0].dtype)  # a tensor, so that it changes in replays as well
        torch._foreach_mul_(steps, share)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(self._averages, steps)  # pyright: ignore[reportPrivateImportUsage]
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    def restart(self) -> None:
        """Set the average to the module's current weights, and n to 0."""
        self.module.load_state_dict(self._source.state_dict())
        self.updates.zero_()


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters and the buffers, shared ones once."""
    return list(module.parameters()), list(module.buffers())
