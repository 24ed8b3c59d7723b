"""Gradients of parameters, summed over the samples of each of their rows by Triton kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Where gradients of parameters go, each row's summed over its samples: [G, C], or None.

    Channels are next to one another. All have the same G, which divides the samples.
    """

    beta: Tensor | None
    gamma: Tensor | None
    shift: Tensor | None  # of a convolution's bias
    add: bool  # to what is there

    @staticmethod
    def like(beta: Tensor | None, gamma: Tensor | None, shift: Tensor | None) -> Rows | None:
        """Return new rows for the gradients of parameters [C] or [G, C]; None if G differs."""
        parameters = [beta, gamma, shift]
        counts = {p.shape[0] if p.dim() == 2 else 1 for p in parameters if p is not None}
        if len(counts) != 1:
            return None
        (count,) = counts
        new = (None if p is None else p.new_empty(count, p.shape[-1]) for p in parameters)
        return Rows(*new, add=False)

    def finish_none(self) -> None:
        """Write the sums over no samples."""
        for each in () if self.add else self[:3]:
            if each is not None:
                each.zero_()
