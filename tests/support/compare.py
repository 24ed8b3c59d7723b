"""Comparisons of tensors by name: to the bit, up to rounding, and relative to the largest value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def assert_same(mine: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Require the same names and the same bits."""
    assert mine.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(mine[name], wanted[name])] == []


def assert_agree(mine: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Require the same names, and float64 values that differ by rounding alone."""
    assert mine.keys() == wanted.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9, msg=name)


def assert_near(
    mine: Tensor, reference: Tensor, limit: float, name: str, scale: float | Tensor | None = None
) -> None:
    """Require a largest error below `limit`, relative to the reference's largest or to `scale`."""
    assert mine.shape == reference.shape, name
    scale = reference.abs().max() if scale is None else scale
    error = ((mine - reference).abs().max() / scale).item()
    assert error < limit, f"{name}: relative error {error:.2e}"


def assert_gradients_near(
    mine: Mapping[str, Tensor | None], reference: Mapping[str, Tensor], limit: float
) -> None:
    """Compare the gradients of one network, each relative to its largest value.

    A bias in front of an instance norm has no effect; its gradient is rounding noise. So small a
    gradient is judged by the largest of the network.
    """
    assert reference and mine.keys() == reference.keys()
    largest = max(value.abs().max() for value in reference.values())
    for name, wanted in reference.items():
        value, own = mine[name], wanted.abs().max()
        assert value is not None, name
        assert_near(value, wanted, limit, name, largest if own < 1e-12 * largest else own)
