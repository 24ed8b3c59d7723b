"""A picture that is too large for memory, translated layer by layer over strips of its rows.

Norms need the mean and the spread of a whole layer, so tiles that go through all layers alone
would differ from the whole picture. Here each layer's convolution runs over strips of rows, read
with the rows around them that its filters reach; results are kept (`levels`) and their statistics
merged, and the next layer normalises rows as it reads them. Every row is computed once, from its
true neighbours and the whole picture's statistics: the result is the whole picture's up to
rounding, and there are no seams to blend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.common.choices import Direction
from fastunit.kernels.conv.block import apply
from fastunit.kernels.conv.plan import Plan
from fastunit.models.chain import Operation, Program
from fastunit.models.domain_pair import DomainPair, extended_size
from fastunit.models.levels import (
    FileLevel,
    Layer,
    Level,
    MemoryLevel,
    Picture,
    Rows,
    Shape,
    Statistics,
)
from fastunit.models.unit2017_layers import ToImage, plan_of

STRIP = 2**25  # values of a strip's input and result where there is memory enough
LEAST = 4  # rows of a strip


class Strips:
    """The layers of one direction of a pair of generators, for pictures of any size.

    Args:
        pair: the generators, in evaluation mode.
        direction: "a2b" or "b2a".

    Raises:
        ValueError: a layer is not one fused operation (batch norm, AdaIN, PReLU, modified or
            replaced modules), or the last one has a norm.
    """

    def __init__(self, pair: DomainPair, direction: Direction) -> None:
        source, target = pair.along(direction)
        self._multiple, self._channels = source.multiple, source.input_dim
        self._layers = [*_layers(source.encoder), *_layers(target.dec)]
        if self._layers[-1].operation.plan.norm != "none" or self._layers[-1].adds:
            raise ValueError("the last layer has a norm or adds a residual")

    def kept_bytes(self, height: int, width: int, itemsize: int) -> int:
        """Return the bytes of results that are kept at once at most, for a picture's size."""
        shapes = self._shapes(height, width)
        sizes = [shape.channels * shape.height * shape.width * itemsize for shape in shapes]
        live = []
        for at in range(len(self._layers) - 1):
            adds, keeps = self._layers[at].adds, self._layers[at + 1].adds
            read = sizes[at] if at else 0
            live.append(read + sizes[at + 1] + (sizes[at] if keeps else 0) + adds * sizes[at + 1])
        return max(live, default=0)

    def translate(
        self,
        read: Callable[[int, int], Tensor],
        size: tuple[int, int],
        write: Callable[[int, Tensor], None],
        *,
        rows: int | None = None,
        values: int = STRIP,
        files: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Translate one picture.

        Args:
            read: returns the picture's rows [1, C, stop - start, W] in [-1, 1], on the networks'
                device, for (start, stop).
            size: the picture's height and width.
            write: takes the row where they start, and rows [1, K, h, W] of the translation.
            rows: of the picture that a strip has; None: as many as make strips of about `values`.
            values: of a strip's input and result.
            files: keep layers in temporary files, not in memory.
            device: of the layers; None: the CPU.

        Raises:
            OSError: a temporary file cannot be written.
        """
        height, width = size
        shapes = self._shapes(*size)
        extended = shapes[0].height
        x: Rows = Picture(read, Shape(self._channels, *size), *shapes[0][1:])
        kind, place = FileLevel if files else MemoryLevel, device or torch.device("cpu")
        residual: Level | None = None
        for at, layer in enumerate(self._layers):
            shape, last = shapes[at + 1], layer is self._layers[-1]
            keeps = not last and self._layers[at + 1].adds
            count = _strip(shapes[at], shape, rows and rows * shape.height // extended, values)
            product, kept, found = None, None, Statistics()
            for start in range(0, shape.height, count):
                stop = min(start + count, shape.height)
                window = layer.window(start, stop, x.shape.height)
                given = x.read(window.start, window.stop)
                y = layer.convolve(given)[:, :, window.skip : window.skip + stop - start]
                if last:
                    y = Layer(_Held(y), layer.operation.plan).read(0, stop - start)
                    if start < height:
                        write(start, y[:, :, : height - start, :width])
                    continue
                product = product or kind(shape, y.dtype, place)
                product.write(start, y)
                if layer.operation.plan.norm != "none":
                    found.add(y)
                if keeps:
                    kept = kept or kind(x.shape, given.dtype, place)
                    kept.write(start, given[:, :, start - window.start : stop - window.start])
            if product is not None:
                plan, weights = layer.operation.plan, layer.operation.weights()
                x = found.layer(product, plan, weights, residual if layer.adds else None)
            residual = kept

    def _shapes(self, height: int, width: int) -> list[Shape]:
        """Return the sizes of the extended picture and of each layer's result."""
        found = [Shape(self._channels, *extended_size(height, width, self._multiple))]
        for layer in self._layers:
            found.append(layer.result(found[-1]))
        return found


class _Held(NamedTuple):
    """Rows that were just computed, read as a level."""

    rows: Tensor

    @property
    def shape(self) -> Shape:
        return Shape(*self.rows.shape[1:])

    def read(self, start: int, stop: int) -> Tensor:
        return self.rows[:, :, start:stop].clone()


class _Window(NamedTuple):
    """The rows that some rows of a result need, and how many rows they give before those."""

    start: int
    stop: int
    skip: int


class _Convolution(NamedTuple):
    """One layer: its operation, and whether it adds the input of the layer before it."""

    operation: Operation
    adds: bool

    def convolve(self, x: Tensor) -> Tensor:
        """Return the convolution of rows, padded as a whole image is, without norm."""
        w = self.operation.weights()
        plan = self.operation.plan._replace(norm="none", act="none")
        return apply(plan, x, w.weight, w.bias, None, None, None, None)

    def result(self, shape: Shape) -> Shape:
        """Return the size of the result for an input's size."""
        plan, filters = self.operation.plan, self.operation.weights().weight.shape
        sizes = (_length(plan, size, filters[-1]) for size in shape[1:])
        return Shape(filters[1] if plan.kind == "transpose" else filters[0], *sizes)

    def window(self, start: int, stop: int, height: int) -> _Window:
        """Return the rows of an input of that height that rows of the result need.

        They go beyond what filters reach: what padding changes at a window's ends is left out.
        """
        plan, reach = self.operation.plan, self.operation.weights().weight.shape[-1] // 2 + 1
        if plan.kind == "conv":
            first = (start * plan.stride - reach) // plan.stride * plan.stride
            end, per = stop * plan.stride + reach, plan.stride
            return _Window(max(0, first), min(height, end), start - max(0, first) // per)
        times = 2 if plan.kind == "upsample" else plan.stride
        first, end = max(0, start // times - reach), min(height, -(-stop // times) + reach)
        return _Window(first, end, start - first * times)


def _length(plan: Plan, size: int, reach: int) -> int:
    if plan.kind == "conv":
        return (size + 2 * plan.padding - reach) // plan.stride + 1
    if plan.kind == "upsample":
        return 2 * size + 2 * plan.padding - reach + 1
    return (size - 1) * plan.stride - 2 * plan.padding + reach + plan.output_padding


def _strip(given: Shape, result: Shape, rows: int | None, values: int) -> int:
    """Return how many rows of a result are computed at a time."""
    if rows is None:
        shrink = given.height / result.height
        row = result.channels * result.width + given.channels * given.width * shrink
        rows = int(values / row)
    return max(LEAST, rows)


def _layers(network: torch.nn.Module) -> Iterator[_Convolution]:
    for layer, operation, adds in Program(network).steps:
        if operation is None and type(layer) is ToImage:
            operation = Operation(plan_of(layer, "none", "tanh"), layer)
        if operation is None:
            raise ValueError(f"{type(layer).__name__} is no fused operation")
        yield _Convolution(operation, adds)
