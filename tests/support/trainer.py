"""The release's trainer as a user has it, and comparisons of two of them after training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastunit.compat import ATTRIBUTES, UNIT_Trainer
from tests.support.compare import assert_agree
from tests.support.golden import NETWORKS

GEN = {"dim": 4, "activ": "relu", "n_downsample": 1, "n_res": 1, "pad_type": "reflect"}
DIS = {
    "dim": 4, "norm": "none", "activ": "lrelu", "n_layer": 2, "gan_type": "lsgan",
    "num_scales": 2, "pad_type": "reflect",
}  # fmt: skip
CONFIG = {
    "lr": 0.001, "lr_policy": "step", "step_size": 2, "gamma": 0.5, "gan_w": 1, "recon_x_w": 10,
    "recon_kl_w": 0.01, "recon_x_cyc_w": 10, "recon_kl_cyc_w": 0.01, "vgg_w": 0, "gen": GEN,
    "dis": DIS, "input_dim_a": 3, "input_dim_b": 3, "crop_image_height": 16,
    "crop_image_width": 16,
}  # fmt: skip
Trained = tuple[dict[str, float], dict[str, Tensor]]


def batch() -> list[Tensor]:
    """Return images of both domains, the same at every call."""
    source = torch.Generator().manual_seed(4)
    return [torch.rand(2, 3, 16, 16, generator=source).double() * 2 - 1 for _ in "ab"]


def noise() -> dict[str, Tensor]:
    """Return noise for the codes of `batch`, the same at every call."""
    source = torch.Generator().manual_seed(5)
    shape = 2, 8, 8, 8
    return {
        k: torch.randn(shape, generator=source, dtype=torch.float64) for k in ["a", "b", "ba", "ab"]
    }


def make(cls: type[UNIT_Trainer] = UNIT_Trainer, **keys: Any) -> Any:
    """Return a trainer in float64 whose networks always begin alike."""
    torch.manual_seed(0)
    return cls(CONFIG | keys).double()


def updated(trainer: Any, steps: int = 2) -> Trained:
    """Train with given noise; return the losses and all weights."""
    for _ in range(steps):
        trainer.update_learning_rate()
        trainer.dis_update(*batch(), CONFIG, noise=noise())
        trainer.gen_update(*batch(), CONFIG, noise=noise())
    return (
        {name: float(getattr(trainer, name)) for name in ATTRIBUTES.values()},
        {
            f"{name}.{key}": value
            for name in NETWORKS
            for key, value in getattr(trainer, name).state_dict().items()
        },
    )


def assert_alike(mine: Trained, wanted: Trained) -> None:
    """Require losses and weights that differ by rounding alone."""
    assert mine[0] == pytest.approx(wanted[0], rel=1e-10, abs=1e-14)
    assert_agree(mine[1], wanted[1])
