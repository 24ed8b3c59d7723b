"""Training batches from a caller's own iterables, such as torch DataLoaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastunit.common.errors import DataError
from fastunit.config import Config

_SLACK = 1e-3  # by which values may exceed [-1, 1]


class Stream:
    """Endless batches of one domain from an iterable, which is started again at its end.

    Args:
        source: yields batches [N, C, H, W] in [-1, 1], floating, N = batch_size * accumulate, of
            the crop's size, or sequences whose first element is such a batch.
        name: the domain, "a" or "b".
        config: the configuration of the run.
        device: where batches go.
    """

    def __init__(
        self, source: Iterable[Any], name: str, config: Config, device: torch.device
    ) -> None:
        self._source, self._name, self._device = source, name, device
        self._channels = config.domain(name).channels
        self._count = config.batch_size * config.accumulate
        self._iterator: Iterator[Any] | None = None
        self._ahead: Tensor | None = None
        self._before: Any = None  # the iterable's state before `_ahead` was taken
        self._crop, self._seen = config.crop, False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Tensor:
        """Return the next batch: float32, channels_last, on the device.

        Raises:
            DataError: the iterable is empty, or yields something else; the message says what.
        """
        if self._ahead is not None:
            batch, self._ahead = self._ahead, None
            return batch
        return self._checked(self._next())

    def peek(self) -> Tensor:
        """Return the batch that `__next__` will return."""
        if self._ahead is None:
            self._before = self.state()
            self._ahead = next(self)
        return self._ahead

    def state(self) -> Any:
        """Return the iterable's state_dict; None if it has none."""
        if self._ahead is not None:
            return self._before
        get = getattr(self._source, "state_dict", None)
        return None if get is None else get()

    def restore(self, state: Any) -> bool:
        """Restore what `state` returned; returns False if the iterable starts anew."""
        put = getattr(self._source, "load_state_dict", None)
        if put is None or state is None:
            return False
        put(state)
        self._iterator = self._ahead = None
        return True

    def _next(self) -> Any:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._source)
            try:
                return next(self._iterator)
            except StopIteration:
                self._iterator = None
        raise DataError(
            f"{self._label} gave no batch; it must be an iterable that can be started again, such "
            "as a torch DataLoader, not an exhausted iterator"
        )

    def _checked(self, batch: Any) -> Tensor:
        x = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 4:
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(
                f"{self._label} gave {what}; batches are floating tensors [N, C, H, W] in [-1, 1]"
            )
        if len(x) != self._count or x.shape[1] != self._channels:
            raise DataError(
                f"{self._label} gave a batch of {len(x)} images of {x.shape[1]} channels, but the "
                f"configuration says {self._count} (batch_size x accumulate) of {self._channels} "
                f"(input_dim_{self._name}); a DataLoader leaves out the smaller last batch with "
                "drop_last=True"
            )
        if tuple(x.shape[2:]) != self._crop:
            raise DataError(
                f"{self._label} gave images of {x.shape[2]}x{x.shape[3]}, but crop_image_height "
                f"and crop_image_width are {self._crop[0]} and {self._crop[1]}"
            )
        if not self._seen:  # on a GPU the check waits for the device
            low, high = x.min().item(), x.max().item()
            if not (low >= -1 - _SLACK and high <= 1 + _SLACK):
                raise DataError(
                    f"{self._label} gave values {low:g}..{high:g}; scale images to [-1, 1]"
                )
            self._seen = True
        x = x.to(self._device, torch.float32, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last)

    @property
    def _label(self) -> str:
        return f"the loader of domain {self._name}"
