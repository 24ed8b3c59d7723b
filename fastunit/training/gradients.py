"""The gradients of a network's parameters in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

ALIGNMENT = 64  # values; so that vectors of several parameters' kernels can be loaded at once


class FlatGradients:
    """Gradients side by side, which one launch sets to zero: `.grad` are views of one buffer.

    The views have the parameters' strides. Parameters must be of one dtype and device, without gaps
    in memory.

    Args:
        parameters: each once.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._buffer: Tensor | None = None
        self._layout: list[tuple] = []
        self._places: dict[Tensor, int] = {}

    def zero(self) -> None:
        """Set the gradients to zero, as views of the buffer."""
        buffer = self.buffer.zero_()
        for parameter, start in self._places.items():
            view = buffer.as_strided(parameter.shape, parameter.stride(), start)
            parameter.grad = view

    def of(self, *parameters: Tensor) -> Tensor | None:
        """Return the gradient of a parameter, or those of several of one shape, stacked.

        The result is a view of the buffer: [*shape] of one, [G, *shape] of G. None where no view
        can be.
        """
        buffer, first = self.buffer, parameters[0]
        starts = [self._places[p] for p in parameters if p in self._places]
        alike = all(p.stride() == first.stride() for p in parameters)
        if len(starts) < len(parameters) or not alike:
            return None
        if len(starts) == 1:
            return buffer.as_strided(first.shape, first.stride(), starts[0])
        apart = {after - before for before, after in pairwise(starts)}
        if len(apart) > 1 or min(apart) <= 0:
            return None
        shape, strides = (len(starts), *first.shape), (*apart, *first.stride())
        return buffer.as_strided(shape, strides, starts[0])

    @property
    def buffer(self) -> Tensor:
        """All gradients, for one all-reduce for instance; allocated when it is first needed."""
        layout = [(p.shape, p.stride(), p.dtype, p.device) for p in self._parameters]
        if self._buffer is None or layout != self._layout:
            size, self._places, self._layout = 0, {}, layout
            for parameter in self._parameters:
                self._places[parameter] = size
                size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            self._buffer = self._parameters[0].new_zeros(size, requires_grad=False)
        return self._buffer
