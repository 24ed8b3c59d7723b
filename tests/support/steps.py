"""Training steps: their weights, noise for them, and configurations of tiny networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastunit.models.domain_pair import DomainPair
from fastunit.training.step import TrainStep


def without_networks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the release's sections, to add the paper's networks to."""
    return {key: value for key, value in values.items() if key not in ("gen", "dis", "share")}


def noise_for(unit: DomainPair, x_a: Tensor, x_b: Tensor) -> dict[str, Tensor]:
    """Return unit normals by name, as a step takes them, for the codes of these images.

    In the order of a contiguous tensor, so that a seed gives the same in any memory format.
    """
    with torch.no_grad():
        codes = dict(zip("ab", unit.encode(x_a, x_b), strict=True))
    of = {"a": "a", "b": "b", "ba": "b", "ab": "a"}
    return {n: torch.randn(codes[d].shape, dtype=codes[d].dtype) for n, d in of.items()}


def weights(step: TrainStep) -> dict[str, Tensor]:
    """Return copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in step.unit.named_parameters()}
