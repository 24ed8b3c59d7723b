"""The gradients of a network's parameters in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

ALIGNMENT = 64  # values; so that vectors of several parameters' kernels can be loaded at once


class FlatGradients:
    """Gradients side by side: between `zero` and `gather` backward adds to views of one buffer.

    The views have the parameters' strides. Parameters must be of one dtype and device, without gaps
    in memory.

    Nothing sets filters' gradients to zero, nearly all of the buffer: `.grad` is None until the
    `first_use` of filters in a backward pass, which writes in place of adding. What autograd puts
    there instead is taken over.

    Args:
        parameters: each once.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._filters = [p for p in parameters if p.dim() == 4]
        self._others = [p for p in parameters if p.dim() != 4]
        self._buffer: Tensor | None = None
        self._layout: list[tuple] = []
        self._places: dict[Tensor, int] = {}
        self._views: dict[Tensor, Tensor] = {}

    def zero(self) -> None:
        """Begin with gradients of zero: the filters' are None, the others' views of the buffer."""
        buffer = self.buffer
        buffer[: self._places[self._filters[0]] if self._filters else None].zero_()
        for parameter in self._filters:
            parameter.grad = None
        for parameter in self._others:
            parameter.grad = self._views[parameter]

    def first_use(self, *filters: Tensor) -> bool:
        """Return whether backward is to write the gradient of filters, not to add to it.

        Afterwards it counts as written.
        """
        first = all(each.grad is None for each in filters)
        for each in filters:
            if first:
                each.grad = self._views[each]
            else:
                self._take_over(each)
        return first

    def gather(self) -> None:
        """End with all gradients in the buffer; those of filters without a use are zero."""
        for each in self._filters:
            self._take_over(each)

    def _take_over(self, parameter: Tensor) -> None:
        view, found = self._views[parameter], parameter.grad
        if found is view:
            return
        if found is None:
            view.zero_()
        else:
            view.copy_(found)
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
        parameters = [*self._others, *self._filters]
        layout = [(p.shape, p.stride(), p.dtype, p.device) for p in parameters]
        if self._buffer is None or layout != self._layout:
            size, self._places, self._layout = 0, {}, layout
            for parameter in parameters:
                self._places[parameter] = size
                size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
            self._buffer = parameters[0].new_zeros(size, requires_grad=False)
            self._views = {
                p: self._buffer.as_strided(p.shape, p.stride(), start)
                for p, start in self._places.items()
            }
        return self._buffer
