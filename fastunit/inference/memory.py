"""How much memory translating an image takes, and how much there is."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastunit.common import devices
from fastunit.common import precision as precisions
from fastunit.common.choices import Direction, Precision
from fastunit.kernels.common import runtime
from fastunit.models.domain_pair import DomainPair
from fastunit.models.live_bytes import LiveBytes
from fastunit.models.strips import STRIP, Strips

SHARE = 0.8  # of the free memory: libraries take some too
MARGIN = 1.35  # peaks over the forecast's: 1.01 to 1.28 measured, glibc keeps freed layers
FEW = 16  # an image's need over that of its layers in strips, at most
MOST = 64  # images at once that are asked for
_SIDE = 512  # of the image that the forecast runs, in pixels
_COPIES = 9  # of a strip's rows at a time, in float32
_OWN = 48 * 2**20  # bytes that libraries take for themselves while they run strips
_LEAST = 2**18  # values of a strip


class Memory:
    """What images need of a device's memory.

    Args:
        networks: the generators; those that `DomainPair` does not describe are never in strips.
        device: where they run.
        precision: the precision in use.
        limit: bytes; of the CPU, those of the whole process. None: SHARE of what is free.
    """

    def __init__(
        self, networks: nn.Module, device: torch.device, precision: Precision, limit: int | None
    ) -> None:
        self._networks, self._device, self._limit = networks, device, limit
        self._precision: Precision = precision
        self._strips: dict[Direction, Strips | None] = {}
        self._per_pixel: dict[Direction, float] = {}

    def strips(self, direction: Direction) -> Strips | None:
        """Return the layers of a direction; None: these networks cannot run in strips."""
        if direction not in self._strips:
            self._strips[direction] = None
            if isinstance(self._networks, DomainPair):
                with suppress(ValueError):
                    self._strips[direction] = Strips(self._networks, direction)
        return self._strips[direction]

    def budget(self) -> int:
        """Return the bytes that translation may use now."""
        if self._limit is None:
            return int(SHARE * devices.free_memory(self._device))
        if self._device.type == "cpu":
            used = devices.proc_bytes("/proc/self/status", "VmRSS") or 0
            return max(0, self._limit - used)
        return min(self._limit, devices.free_memory(self._device))

    def images(self, direction: Direction, height: int, width: int) -> int | None:
        """Return how many whole images fit at once, at most MOST; None: not known."""
        strips = self.strips(direction)
        if strips is None or not height * width:
            return None
        budget = self.budget()
        kept = strips.kept_bytes(height, width, 4)
        if FEW * kept * MOST < budget or kept > budget:  # clear without the forecast's second
            return 0 if kept > budget else MOST
        return min(MOST, int(budget / (MARGIN * self.whole_bytes(direction, height, width))))

    def keeps_in_files(self, direction: Direction, height: int, width: int) -> bool:
        """Return whether layers in strips are too large for the memory."""
        return self._kept(direction, height, width) + 4 * _COPIES * STRIP > self.budget()

    def strip_values(self, direction: Direction, height: int, width: int) -> int:
        """Return the values that a strip may have: fewer than STRIP where memory is short."""
        free = self.budget() - _OWN
        if not self.keeps_in_files(direction, height, width):
            free -= self._kept(direction, height, width)
        return max(_LEAST, min(STRIP, free // (4 * _COPIES)))

    def _kept(self, direction: Direction, height: int, width: int) -> int:
        strips = self.strips(direction)
        itemsize = 2 if self._precision == "bf16" else 4
        return 0 if strips is None else int(MARGIN * strips.kept_bytes(height, width, itemsize))

    def whole_bytes(self, direction: Direction, height: int, width: int) -> int:
        """Return the bytes at the peak of translating one whole image, without the weights."""
        if direction not in self._per_pixel:
            self._per_pixel[direction] = self._forecast(direction) / _SIDE**2
        return int(self._per_pixel[direction] * height * width)

    def _forecast(self, direction: Direction) -> int:
        networks = self._networks
        assert isinstance(networks, DomainPair)
        channels = networks.along(direction)[0].input_dim
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            runtime.no_launches(runtime.arch(self._device)),
            torch.no_grad(),
            precisions.autocast(self._precision, self._device),
            LiveBytes(self._device) as live,
        ):
            x = torch.empty(1, channels, _SIDE, _SIDE, device=self._device)
            networks.translate(x.contiguous(memory_format=torch.channels_last), direction)
        return sum(live.peak)
