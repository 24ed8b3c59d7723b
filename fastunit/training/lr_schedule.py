"""Learning-rate schedules. The rate of an iteration, counted from 1, is set before its updates.

"step" multiplies the rate by `gamma` every `step_size` iterations. "linear" keeps it for the
fraction `decay_from` of `max_iter` iterations, then lowers it by equal amounts, so that it would
be 0 in iteration `max_iter` + 1. "cosine" does so along half a cosine. "constant" keeps it. In the
first `warmup_iter` iterations the rate is multiplied by iteration / `warmup_iter`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from fastunit.config import Config


def rate(config: Config, iteration: int) -> float:
    """Return the rate of an iteration's updates."""
    return config.lr * _factor(config, iteration)


def scheduler(optimizer: Optimizer, config: Config) -> LRScheduler | None:
    """Return an optimizer's schedule, to be advanced before each iteration's updates."""
    if config.lr_policy == "step" and not config.warmup_iter:
        return StepLR(optimizer, config.step_size, config.gamma)
    if config.lr_policy == "constant" and not config.warmup_iter:
        return None
    return LambdaLR(optimizer, lambda iteration: _factor(config, iteration))


def advance(schedulers: Iterable[LRScheduler | None]) -> None:
    """Advance schedules by one iteration; the release does so before the updates."""
    with warnings.catch_warnings():
        # PyTorch expects schedulers to be advanced after the updates and warns on the first call;
        # in a copy of a trainer it mistakes that for an overridden optimizer.step.
        for text in ("Detected call of `lr_scheduler.step", "Seems like `optimizer.step"):
            warnings.filterwarnings("ignore", message=text)
        for scheduler in schedulers:
            if scheduler is not None:
                scheduler.step()


def restore(part: LRScheduler, state: dict[str, Any]) -> None:
    """Load a schedule's state if it is of the same policy; else nothing, see `reset`."""
    if ("lr_lambdas" in state) == isinstance(part, LambdaLR):
        part.load_state_dict(state)


def reset(part: LRScheduler, config: Config, iteration: int) -> None:
    """Set a schedule to the configuration's settings, as after `iteration` iterations."""
    if isinstance(part, StepLR):
        part.step_size, part.gamma = config.step_size, config.gamma
    part.base_lrs = [config.lr]
    part.last_epoch = iteration


def _factor(config: Config, iteration: int) -> float:
    """Return the factor on the base rate in an iteration."""
    warm = 1.0 if iteration >= config.warmup_iter else iteration / config.warmup_iter
    if config.lr_policy == "step":
        return warm * config.gamma ** (iteration // config.step_size)
    if config.lr_policy == "linear":
        return warm * _left(config, iteration)
    if config.lr_policy == "cosine":
        return warm * (1 - math.cos(math.pi * _left(config, iteration))) / 2
    return warm


def _left(config: Config, iteration: int) -> float:
    """Return what is left of the decay, from 1 where it begins to 0 after the last iteration."""
    begin = int(config.decay_from * config.max_iter)
    left = (config.max_iter + 1 - iteration) / (config.max_iter - begin)
    return min(1.0, max(0.0, left))
