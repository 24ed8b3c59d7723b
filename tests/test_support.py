"""What the helpers of tests leave behind."""

from __future__ import annotations

import torch
from torch.utils._device import _device_constructors

from tests.support.poison import poisoned_memory


def test_poisoned_memory_leaves_devices_given_by_a_context_alone():
    _device_constructors.cache_clear()
    with poisoned_memory(), torch.device("meta"):
        assert torch.empty(2).is_meta
    with torch.device("meta"):
        assert torch.empty(2).is_meta
