"""Ablations of the training step: its optimizations, and how to switch each one off.

Optimizations with a configuration key are switched off by it, the others by permanently replacing
functions of fastunit: call `do_without` in a separate process, before anything is built. Those that
are off by default are switched on there by `add`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels import conv_norm_act
from fastunit.kernels.common import branches, dependent
from fastunit.models import discriminator, layers
from fastunit.models.packed import NetworkFilters
from fastunit.models.unit import UNIT
from fastunit.training import objective, state, step
from fastunit.training.objective import Batch, Decoded


class Ablation(NamedTuple):
    """How to switch an optimization off: by configuration keys, or by replacing functions."""

    keys: tuple[str, ...] = ()
    replace: Callable[[], None] | None = None


def do_without(names: Iterable[str]) -> None:
    """Switch optimizations without a key off, permanently in this process."""
    for name in names:
        if (replace := ABLATIONS[name].replace) is not None:
            replace()


def add(names: Iterable[str]) -> None:
    """Switch optimizations of `ADDITIONS` on, permanently in this process."""
    for name in names:
        ADDITIONS[name].ON = True


def keys_without(names: Iterable[str]) -> list[str]:
    """Return the ``key=value`` overrides that switch optimizations with a key off."""
    return [key for name in names for key in ABLATIONS[name].keys]


def _upsample_first(x: Tensor, w: Tensor, b: Tensor, **options: Any) -> Tensor:
    return conv_norm_act(F.interpolate(x, scale_factor=2, mode="nearest"), w, b, **options)


def _decode_one_by_one(unit: UNIT, batch: Batch) -> Decoded:
    noise = batch.noise or {}
    mu_a, mu_b = unit.encode(batch.x_a, batch.x_b)
    z_a, kl_a = unit.gen_a.sample(mu_a, noise.get("a"))
    z_b, kl_b = unit.gen_b.sample(mu_b, noise.get("b"))
    (x_aa, x_bb), (x_ba, x_ab) = unit.decode(z_a, z_b), unit.decode(z_b, z_a)
    return Decoded(x_aa, x_ba, x_ab, x_bb, kl_a, kl_b)


def _decode_apart() -> None:
    objective.decode_both = _decode_one_by_one


def _plain_adam() -> None:
    def adam(parameters: list, config: Any) -> torch.optim.Adam:
        betas = config.beta1, config.beta2
        return torch.optim.Adam(parameters, config.lr, betas, weight_decay=config.weight_decay)

    step.adam = adam


ABLATIONS = {
    "fakes shared by both updates": Ablation(("share_fakes=false",)),
    "upsampling in phases": Ablation(
        replace=partial(setattr, layers, "upsample_conv", _upsample_first)
    ),
    "both codes decoded in one call": Ablation(replace=_decode_apart),
    "fakes and real images in one pass": Ablation(
        replace=partial(setattr, discriminator.Discriminator, "can_join", lambda *images: False)
    ),
    "filters laid out once": Ablation(
        replace=partial(setattr, NetworkFilters, "write", lambda filters, grouped: None)
    ),
    "fused Adam": Ablation(replace=_plain_adam),
    "channels last": Ablation(
        replace=partial(setattr, state, "MEMORY_FORMAT", torch.contiguous_format)
    ),
}
GPU_ABLATIONS = {
    "grouped execution": Ablation(("pair_domains=off",)),
    "CUDA graph": Ablation(("graphs=off",)),
    "torch.compile": Ablation(("compile=off",)),
    "bf16": Ablation(("precision=tf32",)),
}
if torch.cuda.is_available():
    ABLATIONS |= GPU_ABLATIONS
# Off until a GPU has measured them: modules with a switch, `ON`.
ADDITIONS: dict[str, Any] = {
    "branches of the CUDA graph": branches,
    "programmatic dependent launch": dependent,
}
