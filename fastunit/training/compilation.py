"""torch.compile for the code between fused operations; falls back to eager if it fails."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from typing import Any

import torch

from fastunit.common.choices import Switch

_logger = logging.getLogger(__name__)


class Compiled:
    """Calls functions of tensors, compiled for the shapes of their arguments.

    `mode` is "on", "off" or "auto", which compiles on GPUs only. The step compiles its losses: the
    networks are fused operations already, into which a compiler cannot see. Each function is one
    graph; its backward pass is compiled together with its forward pass. If compilation fails, a
    warning says why and all functions run in eager mode from then on.

    Attributes:
        failed: whether compilation has failed.
    """

    def __init__(self, mode: Switch, device: torch.device) -> None:
        self._mode, self._device, self.failed = mode, device, False
        self._compiled: dict[Callable, Callable] = {}

    def __call__(self, function: Callable, *args: Any) -> Any:
        if not self.is_on:
            return function(*args)
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, dynamic=False, fullgraph=True)
        # Only here: these modules take a second to import, and most commands never compile.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._functorch import config as functorch
        from torch._inductor.exc import InductorError

        try:
            with functorch.patch(force_non_lazy_backward_lowering=True):
                return self._compiled[function](*args)
        except (TorchDynamoException, FailOnRecompileLimitHit, InductorError) as error:
            self.failed = True
            reason = textwrap.shorten(str(error), 200)
            _logger.warning(
                "compile off: torch.compile failed in %s: %s", function.__name__, reason
            )
            return function(*args)

    @property
    def is_on(self) -> bool:
        """Whether functions are compiled."""
        wanted = self._mode == "on" or (self._mode == "auto" and self._device.type == "cuda")
        return wanted and not self.failed
