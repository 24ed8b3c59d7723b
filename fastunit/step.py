"""One training step: discriminator update, then generator update."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from fastunit.config import Config
from fastunit.errors import CheckpointError
from fastunit.networks import UNIT
from fastunit.objective import (
    Decoded,
    Losses,
    Noise,
    decode_both,
    discriminator_losses,
    generator_losses,
)
from fastunit.perceptual import Perceptual


class TrainStep:
    """``step(x_a, x_b) -> losses``: both updates, with the release's optimisers and schedule.

    Images are [N, C, H, W] in [-1, 1] on the networks' device and of their dtype; the losses
    are detached scalars on that device, named as in `objective.LOSSES`. Nothing waits for the
    device.
    """

    def __init__(self, unit: UNIT, config: Config, perceptual: Perceptual | None = None) -> None:
        self.unit, self.config, self.perceptual = unit, config, perceptual
        self.dis_opt = _adam(unit.discriminators(), config)
        self.gen_opt = _adam(unit.generators(), config)
        self.dis_scheduler = _scheduler(self.dis_opt, config)
        self.gen_scheduler = _scheduler(self.gen_opt, config)

    def __call__(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        """Take a step; `noise` as in `objective.generator_losses`, drawn where it is None.

        With `share_fakes` both updates use one forward pass of the generators, which do not
        change in between; without, the discriminators' update draws its own noise, as the
        release does.
        """
        self.update_learning_rate()
        if not self.config.share_fakes:
            return self.dis_update(x_a, x_b, noise) | self.gen_update(x_a, x_b, noise)
        decoded = decode_both(self.unit, x_a, x_b, noise)
        losses = self.dis_update(x_a, x_b, decoded=decoded)
        return losses | self.gen_update(x_a, x_b, noise, decoded)

    def dis_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None = None,
        decoded: Decoded | None = None,
    ) -> Losses:
        """Update the discriminators; arguments as in `objective.discriminator_losses`."""
        self.dis_opt.zero_grad()
        losses = discriminator_losses(self.unit, x_a, x_b, self.config, noise, decoded)
        losses["discriminator_total"].backward()
        self.dis_opt.step()
        return _detached(losses)

    def gen_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None = None,
        decoded: Decoded | None = None,
    ) -> Losses:
        """Update the generators; arguments as in `objective.generator_losses`."""
        self.gen_opt.zero_grad()
        with frozen(self.unit.dis_a, self.unit.dis_b):
            losses = generator_losses(
                self.unit, x_a, x_b, self.config, noise, self.perceptual, decoded
            )
            losses["generator_total"].backward()
        self.gen_opt.step()
        return _detached(losses)

    def update_learning_rate(self) -> None:
        """Advance both schedules by one iteration; the release does so before the updates."""
        with warnings.catch_warnings():
            # PyTorch's own order is after the updates, and it says so on the first call; in a
            # copy of a trainer it takes the same for an overridden optimizer.step.
            for said in ("Detected call of `lr_scheduler.step", "Seems like `optimizer.step"):
                warnings.filterwarnings("ignore", message=said)
            for scheduler in (self.dis_scheduler, self.gen_scheduler):
                if scheduler is not None:
                    scheduler.step()

    @property
    def learning_rate(self) -> float:
        return float(self.gen_opt.param_groups[0]["lr"])

    def _stateful(self) -> dict:
        parts = {
            "dis_opt": self.dis_opt,
            "gen_opt": self.gen_opt,
            "dis_scheduler": self.dis_scheduler,
            "gen_scheduler": self.gen_scheduler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict:
        """Return the state of the optimisers and schedules (not of the networks)."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._stateful().items():
            if name in state:  # a schedule is absent where it was constant; `reset_settings`
                part.load_state_dict(state[name])

    def reset_settings(self, iteration: int) -> None:
        """Give restored optimisers and schedules the configuration's settings at an iteration."""
        config = self.config
        steps = iteration // config.step_size if config.lr_policy == "step" else 0
        for optimizer in (self.dis_opt, self.gen_opt):
            for group in optimizer.param_groups:
                group["lr"], group["initial_lr"] = config.lr * config.gamma**steps, config.lr
                group["betas"] = (config.beta1, config.beta2)
                group["weight_decay"] = config.weight_decay
        for scheduler in (self.dis_scheduler, self.gen_scheduler):
            if scheduler is not None:
                scheduler.step_size, scheduler.gamma = config.step_size, config.gamma
                scheduler.base_lrs = [config.lr]
                scheduler.last_epoch = iteration

    def load_release_optimizers(self, state: dict, iteration: int) -> None:
        """Restore the release's optimizer.pt, {"gen": ..., "dis": ...}, at an iteration."""
        try:
            for optimizer, name in ((self.gen_opt, "gen"), (self.dis_opt, "dis")):
                optimizer.load_state_dict(state[name])
                _check_moments(optimizer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"optimizer.pt does not fit the networks: {error}") from error
        for scheduler in (self.dis_scheduler, self.gen_scheduler):
            if scheduler is not None:
                scheduler.last_epoch = iteration


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Spare the modules' weights their gradients inside the block; gradients pass through."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _adam(parameters: list[nn.Parameter], config: Config) -> Adam:
    return Adam(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )


def _check_moments(optimizer: Adam) -> None:
    """Raise ValueError for moments of another shape than their weights: loading lets them pass."""
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != parameter.shape:
                raise ValueError(
                    f"{name} of shape {tuple(moments[name].shape)} for a weight of shape "
                    f"{tuple(parameter.shape)}"
                )


def _scheduler(optimizer: Adam, config: Config) -> StepLR | None:
    if config.lr_policy == "constant":
        return None
    return StepLR(optimizer, config.step_size, config.gamma)


def _detached(losses: Losses) -> Losses:
    return {name: torch.as_tensor(loss).detach() for name, loss in losses.items()}
