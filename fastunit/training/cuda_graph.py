"""A training step captured as a CUDA graph, and replayed with a single launch."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable

import torch
from torch import Tensor

from fastunit.common.errors import UserError
from fastunit.training.objective import Losses

_logger = logging.getLogger(__name__)
WARM_UP = 3  # steps before capture, for library initialization, compilation and optimizer state

Step = Callable[[Tensor, Tensor], Losses]


class GraphedStep:
    """``graphed(x_a, x_b) -> losses``, the same as `step`, replayed from the fourth call on.

    `step` must not read from the device, and must keep its state in tensors that it changes in
    place. The graph has the shapes and dtypes of the first images; for others `step` is called.
    Losses are copies, which the next replay does not overwrite. If the capture fails, RuntimeError
    is raised if `required`; otherwise a warning is logged and `step` is called every time, unless
    the failure has left the device unusable for this process: then UserError is raised.
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
        return _on_graph_stream(self._stream, run, x_a, x_b)

    def _capture(self, images: tuple[Tensor, Tensor], stream: torch.cuda.Stream) -> None:
        graph = torch.cuda.CUDAGraph()
        # thread_local: DALI's threads call CUDA during the capture, which must not invalidate it.
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
            if not _works(stream.device):
                raise UserError(
                    f"the step cannot be captured as a CUDA graph: {reason}; this process cannot "
                    "use the GPU any more: start or resume with --set graphs=off"
                ) from error
            _logger.warning("graphs off: the step cannot be captured: %s", reason)
        else:
            self._graph = graph

    def _replay(self, x_a: Tensor, x_b: Tensor) -> Losses:
        assert self._images is not None and self._graph is not None
        for static, given in zip(self._images, (x_a, x_b), strict=True):
            static.copy_(given)
        self._graph.replay()
        return {name: loss.clone() for name, loss in self._losses.items()}


def _works(device: torch.device) -> bool:
    """Return whether the device still runs kernels and draws random numbers."""
    try:
        torch.randn(1, device=device)
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _on_graph_stream(stream: torch.cuda.Stream, run: Step, x_a: Tensor, x_b: Tensor) -> Losses:
    """Run on the graph's stream, ordered after the caller's earlier work and before its later."""
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
