"""A recorded training of the 2018 release in float64, and comparisons with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.compare import assert_gradients_near, assert_near
from tests.support.tensors import under

CASES = ("unit_lsgan_reflect", "unit_nsgan_zero_lrelu_rect")
NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")
FORWARD, GRADIENT = 1e-9, 1e-7  # relative, from golden/README.md


class Golden:
    """A case: `meta` with configuration and losses, and arrays under the names of NETWORKS.

    `owner` below is what has the four networks as attributes.
    """

    def __init__(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.meta = meta
        self.tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        self.images = self.tensors["x_a"], self.tensors["x_b"]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return under(self.tensors, prefix)

    def load_initial(self, owner: Any) -> None:
        """Give the owner the parameters before the first step."""
        for name in NETWORKS:
            getattr(owner, name).load_state_dict(self.group(f"init/{name}."))

    def assert_forward(self, outputs: Mapping[str, Tensor]) -> None:
        """Compare images, codes and scores before the first step."""
        golden = self.group("forward/")
        assert golden.keys() == outputs.keys()
        for name, reference in golden.items():
            assert_near(outputs[name], reference, FORWARD, name)

    def assert_gradients(self, owner: Any, update: str, networks: Sequence[str]) -> None:
        """Compare the gradients of an update of the first step."""
        for name in networks:
            mine = {k: p.grad for k, p in getattr(owner, name).named_parameters()}
            golden = self.group(f"step0/grad.{update}/{name}.")
            assert_gradients_near(mine, golden, GRADIENT)

    def assert_final(self, owner: Any) -> None:
        """Compare the parameters after the last step."""
        for name in NETWORKS:
            final, mine = self.group(f"final/{name}."), getattr(owner, name).state_dict()
            assert final
            for key, reference in final.items():
                # Adam turns the rounding noise in a cancelled bias's gradient into a millionth of
                # a step; one full step (lr) is the smallest scale a parameter is judged on.
                scale = max(reference.abs().max().item(), self.meta["config"]["lr"])
                assert_near(mine[key], reference, GRADIENT, f"{name}.{key}", scale)
