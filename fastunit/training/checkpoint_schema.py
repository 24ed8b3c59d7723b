"""The form of a checkpoint's state: checked as a whole before any of it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastunit.common.errors import CheckpointError
from fastunit.common.text import brief

_MOST = 10**12  # iterations and samples
_Check = Callable[[Any], bool]


def check(state: Mapping[str, Any], source: str) -> None:
    """Check the types and ranges of a training state; tensors are compared with networks later.

    Raises:
        CheckpointError: an entry is missing or wrong; the message names it.
    """
    for name, (right, words) in _ENTRIES.items():
        if name not in state:
            raise CheckpointError(f"{source} has no {name}")
        if not right(state[name]):
            raise CheckpointError(f"{source}: {name} is {brief(state[name])}, not {words}")


def check_iteration(state: Mapping[str, Any], source: str) -> None:
    """Check the entries that every checkpoint has."""
    for name in ("iteration", "config"):
        right, words = _ENTRIES[name]
        if name not in state or not right(state[name]):
            raise CheckpointError(f"{source}: {name} is {brief(state.get(name))}, not {words}")


def check_moments(state: Mapping[str, Any], iteration: int, source: str) -> None:
    """Check that optimizers have finite moments for all weights once a run has begun."""
    for name in ("gen_opt", "dis_opt"):
        optimizer = state.get(name)
        try:
            _check_optimizer(optimizer, iteration)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = str(error) or type(error).__name__
            raise CheckpointError(f"{source}: step.{name} is damaged: {reason}") from error


def _check_optimizer(optimizer: Any, iteration: int) -> None:
    moments, groups = optimizer["state"], optimizer["param_groups"]
    indices = [index for group in groups for index in group["params"]]
    if iteration and not moments and indices:
        raise ValueError("it has no moments")
    for index, entry in moments.items():
        if index not in indices:
            raise ValueError(f"it has moments of a weight {brief(index)} that there is not")
        for key in ("exp_avg", "exp_avg_sq"):
            value = entry[key]
            if not value.is_floating_point() or not value.isfinite().all():
                raise ValueError(f"{key} of weight {index} is not finite")
        if (entry["exp_avg_sq"] < 0).any():
            raise ValueError(f"exp_avg_sq of weight {index} is negative")
        step = float(entry["step"])
        if not 0 <= step <= _MOST:
            raise ValueError(f"step of weight {index} is {step}")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _seconds(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _dict(*keys: str, of: _Check) -> _Check:
    def right(value: Any) -> bool:
        return isinstance(value, dict) and value.keys() == {*keys} and all(map(of, value.values()))

    return right


def _tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(each, Tensor) for key, each in value.items()
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _random(value: Any) -> bool:
    return _tensors(value) and "cpu" in value and all(v.dim() == 1 for v in value.values())


_ENTRIES: dict[str, tuple[_Check, str]] = {
    "iteration": (_count, "a count of iterations"),
    "config": (lambda value: isinstance(value, dict), "a configuration"),
    "unit": (_tensors, "the networks' tensors by name"),
    "step": (lambda value: isinstance(value, dict), "the state of the optimizers"),
    "ema": (lambda value: value is None or _tensors(value), "the averaged tensors by name"),
    "ema_updates": (_count, "a count of updates"),
    "random": (_random, "states of random generators"),
    "positions": (_dict("a", "b", of=_count), "a count of samples for each domain"),
    "files": (_dict("a", "b", of=_text), "a text for each domain"),
    "spent": (_dict("seconds", "loop_seconds", of=_seconds), "two times in seconds"),
}
