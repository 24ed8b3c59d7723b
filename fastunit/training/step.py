"""One training step: discriminator update, then generator update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from fastunit.common import precision
from fastunit.common.choices import Precision
from fastunit.common.errors import ConfigError
from fastunit.config import Config
from fastunit.kernels.common.weight_cache import forget, keep_filters
from fastunit.models.domain_pair import Coupled
from fastunit.models.grouped import Pairing
from fastunit.models.perceptual import Perceptual
from fastunit.training import lr_schedule, optim
from fastunit.training.compilation import Compiled
from fastunit.training.cuda_graph import GraphedStep
from fastunit.training.ema import Average
from fastunit.training.objective import (
    Decoded,
    Losses,
    Noise,
    decode_both,
    discriminator_losses,
    generator_losses,
)
from fastunit.training.optim import adam, make_capturable, settle

R = TypeVar("R")
_SWITCH = {"auto": None, "on": True, "off": False}


class TrainStep:
    """``step(x_a, x_b) -> losses``: both updates, with the release's optimizers and schedule.

    Images are [N, C, H, W] in [-1, 1] on the networks' device and of their dtype; the losses
    are detached scalars on that device, named as in `objective.LOSSES`. Nothing waits for the
    device.

    Args:
        unit: the networks of both domains, whose weights the step changes.
        config: weights of the losses, optimizers, schedule, precision and how to compute.
        perceptual: the VGG16 term; needed where config.vgg_w is above 0.
        average: of the generators' weights; each step updates it.

    Attributes:
        dis_opt: Adam of the discriminators.
        gen_opt: Adam of the generators.
        learning_rate: the last step's, known without asking the device.
    """

    def __init__(
        self,
        unit: Coupled,
        config: Config,
        perceptual: Perceptual | None = None,
        average: Average | None = None,
    ) -> None:
        self.unit, self.config, self.average = unit, config, average
        self.perceptual: nn.Module | None = perceptual
        unit.pairing = Pairing(_SWITCH[config.pair_domains], config.checkpoint_activations)
        self.dis_opt: Optimizer = adam(unit.discriminators(), config)
        self.gen_opt: Optimizer = adam(unit.generators(), config)
        self.dis_scheduler = lr_schedule.scheduler(self.dis_opt, config)
        self.gen_scheduler = lr_schedule.scheduler(self.gen_opt, config)
        self.compiled = Compiled(config.compile)
        self.learning_rate = config.lr  # as on the device, known without asking it
        self._graphed: GraphedStep | None = None

    def __call__(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        """Take a step: the discriminators' update, then the generators'.

        With `share_fakes` both updates use one forward pass of the generators, which do not
        change in between; without, the discriminators' update draws its own noise, as the
        release does. With `accumulate` of n the batch is n equal parts, whose gradients are
        averaged one after the other; each update then translates for itself.

        Args:
            x_a: images of domain a, [N, C, H, W] in [-1, 1].
            x_b: images of domain b; N, C, H and W may differ from x_a's.
            noise: unit normals, as in `objective.generator_losses`; None draws them.

        Returns:
            The losses of `objective.LOSSES` that the configuration has, detached scalars.

        Afterwards the generators have their gradients, the discriminators none.

        Raises:
            ValueError: the batch cannot be divided by `accumulate`.
        """
        self.update_learning_rate()
        if self._graphed is not None and noise is None:
            return self._graphed(x_a, x_b)
        return self._updates(x_a, x_b, noise)

    def _updates(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        self.gen_opt.zero_grad()  # gradients of no further use leave their memory to the step
        with keep_filters(self.unit.generators()):  # they stay as they are until the end
            decoded = None
            if self.config.share_fakes and self.config.accumulate == 1:
                decoded = self._call(decode_both, self.unit, x_a, x_b, noise)
            losses = self.dis_update(x_a, x_b, noise, decoded)
            self.dis_opt.zero_grad()
            losses |= self.gen_update(x_a, x_b, noise, decoded)
        if self.average is not None:
            self.average.update()
        return losses

    def dis_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None = None,
        decoded: Decoded | None = None,
    ) -> Losses:
        """Update the discriminators; arguments as in `objective.discriminator_losses`."""

        def losses(x_a: Tensor, x_b: Tensor, noise: Noise | None) -> Losses:
            return self._call(
                discriminator_losses, self.unit, x_a, x_b, self.config, noise, decoded
            )

        return self._update(self.dis_opt, "discriminator_total", losses, x_a, x_b, noise, decoded)

    def gen_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None = None,
        decoded: Decoded | None = None,
    ) -> Losses:
        """Update the generators; arguments as in `objective.generator_losses`."""

        def losses(x_a: Tensor, x_b: Tensor, noise: Noise | None) -> Losses:
            return self._call(
                generator_losses, self.unit, x_a, x_b, self.config, noise, self.perceptual, decoded
            )

        with frozen(self.unit.dis_a, self.unit.dis_b):
            return self._update(self.gen_opt, "generator_total", losses, x_a, x_b, noise, decoded)

    def _update(
        self,
        optimizer: Optimizer,
        total: str,
        losses: Callable[..., Losses],
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None,
        decoded: Decoded | None,
    ) -> Losses:
        """As `descend`; what is made from weights is kept until they change."""
        if decoded is not None and self.config.accumulate > 1:
            raise ValueError("decoded belongs to a whole batch; leave it out with accumulate > 1")
        with keep_filters(self._weights()):
            return self.descend(optimizer, total, losses, x_a, x_b, noise)

    def descend(
        self,
        optimizer: Optimizer,
        total: str,
        losses: Callable[..., Losses],
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None,
    ) -> Losses:
        """Descend the mean of the losses of the batch's parts; return these means.

        `losses` takes a part of x_a, x_b and noise; what it returns under `total` is descended.
        """
        count, found = self.config.accumulate, []
        optimizer.zero_grad()
        with precision.matmul_settings(self._resolved()):
            for part in range(count):
                inputs = (_part(value, part, count) for value in (x_a, x_b, noise))
                found.append(losses(*inputs))
                (found[-1][total] / count).backward()
                found[-1] = _detached(found[-1])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        forget(parameters)
        if self.config.clip_grad_norm:
            clip_grad_norm_(parameters, self.config.clip_grad_norm)
        optimizer.step()
        if count == 1:
            return found[0]
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}

    def as_it_is(self, function: Callable[..., R], *args: Any) -> R:
        """Call a function in the configured precision, not compiled."""
        with precision.autocast(self._resolved(), self.device):
            return function(*args)

    def _call(self, function: Callable[..., R], *args: Any) -> R:
        """Call a function of the networks in the configured precision, compiled if configured."""
        resolved, device = self._resolved(), self.device
        with precision.autocast(resolved, device):
            return self.compiled(function, *args, device=device)

    def _resolved(self) -> Precision:
        return precision.resolve(self.config.precision, self.device)

    def _weights(self) -> list[nn.Parameter]:
        """Return everything that stays as it is during an update."""
        modules = [self.unit] if self.perceptual is None else [self.unit, self.perceptual]
        return [weight for module in modules for weight in module.parameters()]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unit.parameters()).device

    @property
    def uses_graphs(self) -> bool:
        """Whether steps are replayed, once they are warm."""
        return self._graphed is not None

    def use_graphs(self, *, required: bool = False) -> None:
        """Replay the step as a CUDA graph once it is warm; the networks are on a GPU.

        Args:
            required: what to do where the step cannot be captured: raise, or warn with the
                reason and go on uncaptured.

        Raises:
            ConfigError: the networks are not on a GPU.
            RuntimeError: from a later step, where it cannot be captured and is required to be.
        """
        if self.device.type != "cuda":
            raise ConfigError(f"graphs=on needs an NVIDIA GPU, not {self.device}; use graphs=auto")
        for optimizer in (self.dis_opt, self.gen_opt):
            make_capturable(optimizer)
        self._graphed = GraphedStep(self._updates, required=required)

    def update_learning_rate(self) -> None:
        """Advance both schedules by one iteration; the release does so before the updates."""
        lr_schedule.advance((self.dis_scheduler, self.gen_scheduler))
        scheduler = self.gen_scheduler
        if isinstance(scheduler, StepLR):  # which multiplies the rate that there is
            if scheduler.last_epoch % scheduler.step_size == 0:
                self.learning_rate *= scheduler.gamma
        elif scheduler is not None:
            self.learning_rate = lr_schedule.rate(self.config, scheduler.last_epoch)

    def _stateful(self) -> dict:
        parts = {
            "dis_opt": self.dis_opt,
            "gen_opt": self.gen_opt,
            "dis_scheduler": self.dis_scheduler,
            "gen_scheduler": self.gen_scheduler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict:
        """Return the state of the optimizers and schedules (not of the networks)."""
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        for name in ("dis_opt", "gen_opt"):
            for group in state[name]["param_groups"]:
                if isinstance(group["lr"], Tensor):  # a graph's, rounded to float32
                    group["lr"] = self.learning_rate
        return state

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._stateful().items():
            if name in ("dis_opt", "gen_opt"):
                part.load_state_dict(state[name])
            elif name in state:  # a schedule is absent where it was constant; `reset_settings`
                lr_schedule.restore(part, state[name])
        self._settle()

    def reset_settings(self, iteration: int) -> None:
        """Give restored optimizers and schedules the configuration's settings at an iteration."""
        config = self.config
        for optimizer in (self.dis_opt, self.gen_opt):
            for group in optimizer.param_groups:
                group.update(optimizer.defaults)
                group["lr"], group["initial_lr"] = lr_schedule.rate(config, iteration), config.lr
        for scheduler in (self.dis_scheduler, self.gen_scheduler):
            if scheduler is not None:
                lr_schedule.reset(scheduler, config, iteration)
        self._settle()

    def load_release_optimizers(self, state: dict, iteration: int) -> list[str]:
        """Restore the release's optimizer.pt, {"gen": ..., "dis": ...}, at an iteration.

        The configuration's settings and its rate at that iteration win over the file's.

        Args:
            state: the content of the file.
            iteration: how many iterations were done.

        Returns:
            A line for each setting in which they differ.

        Raises:
            CheckpointError: the file does not fit the networks.
        """
        optimizers = {"gen": self.gen_opt, "dis": self.dis_opt}
        optim.load(optimizers, state)
        found = {
            difference: None
            for each in optimizers.values()
            for difference in optim.differences(each, self.config, iteration)
        }
        self.reset_settings(iteration)
        return list(found)

    def _settle(self) -> None:
        """Keep this step's ways of computing where restored optimisers bring others along."""
        self.learning_rate = float(self.gen_opt.param_groups[0]["lr"])
        for optimizer in (self.dis_opt, self.gen_opt):
            settle(optimizer)
        if self._graphed is not None:
            self.use_graphs(required=self._graphed.required)


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


def _detached(losses: Losses) -> Losses:
    return {name: torch.as_tensor(loss).detach() for name, loss in losses.items()}


def _part(value: Tensor | Noise | None, part: int, count: int) -> Tensor | Noise | None:
    """Return one of `count` equal parts of a batch, or of every tensor of the noise."""
    if count == 1 or value is None:
        return value
    if not isinstance(value, Tensor):
        return {
            name: None if of_name is None else _chunk(of_name, part, count)
            for name, of_name in value.items()
        }
    return _chunk(value, part, count)


def _chunk(value: Tensor, part: int, count: int) -> Tensor:
    if len(value) % count:
        raise ValueError(f"a batch of {len(value)} cannot be cut into accumulate={count} parts")
    return value.chunk(count)[part]
