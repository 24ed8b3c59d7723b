"""`deterministic: true`: the same bits in every run on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# cuBLAS sums in one order only with a workspace of fixed size.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Use deterministic algorithms of PyTorch and cuBLAS inside the block.

    An operation that has no deterministic algorithm raises RuntimeError. On a CPU, training is
    deterministic without this.
    """
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    switches: Any = torch.utils.deterministic
    filled = switches.fill_uninitialized_memory
    name, wanted = _WORKSPACE
    workspace = os.environ.get(name)
    os.environ[name] = wanted
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False  # which costs time, and finds bugs
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        switches.fill_uninitialized_memory = filled
        if workspace is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = workspace
