"""What the tests of training share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Return images of both domains of `tiny`, between -1 and 1."""
    return torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1
