"""A training step as one CUDA graph: captured once, then replayed with a single launch."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable

import torch
from torch import Tensor

from fastunit.training.objective import Losses

_logger = logging.getLogger(__name__)
WARM_UP = 3  # steps that run before capture: libraries, autotuning and optimisers settle

Step = Callable[[Tensor, Tensor], Losses]


class GraphedStep:
    """``graphed(x_a, x_b) -> losses``, the same as `step`, replayed from the fourth call on.

    `step` must read nothing from the device and keep its state in tensors that it changes in
    place. The first images' shapes and dtypes are those of the graph; others run as they are.
    Losses are copies: they stay when the next step is replayed. Where the capture fails,
    RuntimeError if `required`, else a warning, and every step runs as it is.
    """

    def __init__(self, step: Step, *, required: bool) -> None:
        self._step, self.required = step, required
        self._stream: torch.cuda.Stream | None = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images: tuple[Tensor, Tensor] | None = None
        self._losses: Losses = {}

    def __call__(self, x_a: Tensor, x_b: Tensor) -> Losses:
        if self._images is None or self._stream is None:
            self._images = x_a.clone(), x_b.clone()
            self._stream = torch.cuda.Stream(x_a.device)
        fits = all(map(_alike, self._images, (x_a, x_b)))
        self._calls += fits
        if fits and self._calls == WARM_UP + 1:
            self._capture(self._images, self._stream)
        run = self._replay if fits and self._graph is not None else self._step
        return _beside(self._stream, run, x_a, x_b)

    def _capture(self, images: tuple[Tensor, Tensor], stream: torch.cuda.Stream) -> None:
        graph = torch.cuda.CUDAGraph()
        # DALI's threads use CUDA while this one captures: only calls of this one may disturb it.
        try:
            with (
                torch.cuda.device(stream.device),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                self._losses = self._step(*images)
        except RuntimeError as error:
            if self.required:
                raise
            reason = textwrap.shorten(str(error), 200)
            _logger.warning(
                "graphs off: the step cannot be captured: %s; if CUDA errors follow, resume with "
                "graphs=off",
                reason,
            )
        else:
            self._graph = graph

    def _replay(self, x_a: Tensor, x_b: Tensor) -> Losses:
        assert self._images is not None and self._graph is not None
        for static, given in zip(self._images, (x_a, x_b), strict=True):
            static.copy_(given)
        self._graph.replay()
        return {name: loss.clone() for name, loss in self._losses.items()}


def _beside(stream: torch.cuda.Stream, run: Step, x_a: Tensor, x_b: Tensor) -> Losses:
    """Run on the stream of the graph, between what comes before and after on the caller's."""
    here = torch.cuda.current_stream(x_a.device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        losses = run(x_a, x_b)
    here.wait_stream(stream)
    for tensor in (x_a, x_b):
        tensor.record_stream(stream)
    for loss in losses.values():
        loss.record_stream(here)
    return losses


def _alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype
