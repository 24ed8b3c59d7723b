"""One training step: discriminator update, then generator update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from fastunit.common import precision
from fastunit.common.errors import ConfigError
from fastunit.config import Config, MunitConfig
from fastunit.kernels.common import branches
from fastunit.models.domain_pair import TrainablePair
from fastunit.models.grouped import GroupedExecution
from fastunit.models.packed import NetworkFilters
from fastunit.models.perceptual import Perceptual
from fastunit.training import lr_schedule, munit_objective, objective, optim
from fastunit.training.compilation import Compiled
from fastunit.training.cuda_graph import GraphedStep
from fastunit.training.ema import Average
from fastunit.training.gradients import FlatGradients
from fastunit.training.objective import Batch, Decoded, Losses, Noise
from fastunit.training.optim import adam, make_capturable, reset_execution

Objective = Callable[[Batch], Losses]
AnyDecoded = Decoded | munit_objective.Decoded
_SWITCH = {"auto": None, "on": True, "off": False}


class TrainStep:
    """``step(x_a, x_b) -> losses``: both updates, with the release's optimizers and schedule.

    Images are [N, C, H, W] in [-1, 1] on the networks' device and of their dtype. The losses are
    detached scalars on that device, named as in `objective.LOSSES`. The host does not wait for the
    device.

    Args:
        unit: the networks of both domains; their weights are updated.
        config: loss weights, optimizers, schedule, precision and execution options.
        perceptual: the VGG16 term; required if config.vgg_w is above 0.
        average: the moving average of the generators; updated in each step.

    Attributes:
        dis_opt: Adam of the discriminators.
        gen_opt: Adam of the generators.
        learning_rate: that of the last step, a float on the host.
    """

    def __init__(
        self,
        unit: TrainablePair,
        config: Config,
        perceptual: Perceptual | None = None,
        average: Average | None = None,
    ) -> None:
        self.unit, self.config, self.average = unit, config, average
        self.perceptual: Any = perceptual  # users of `compat` may have a module of their own
        self._execution = unit.execution = GroupedExecution(
            _SWITCH[config.pair_domains], config.checkpoint_activations
        )
        store, self._keeps_filters = self._execution.filters, False
        self._gen_filters = NetworkFilters(unit.gen_a, unit.gen_b, store)
        self._dis_filters = NetworkFilters(unit.dis_a, unit.dis_b, store)
        self._gen_gradients = FlatGradients(unit.generators())
        self._dis_gradients = FlatGradients(unit.discriminators())
        self._flat: set[FlatGradients] = set()  # those to which backward adds inside `_filters`
        self.dis_opt: Optimizer = adam(unit.discriminators(), config)
        self.gen_opt: Optimizer = adam(unit.generators(), config)
        self.dis_scheduler = lr_schedule.scheduler(self.dis_opt, config)
        self.gen_scheduler = lr_schedule.scheduler(self.gen_opt, config)
        self.compiled = Compiled(config.compile, self.device)
        self.learning_rate = config.lr  # on the host: with CUDA graphs the optimizers' is a tensor
        self._graphed: GraphedStep | None = None

    def __call__(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        """Take a step: the discriminators' update, then the generators'.

        With `share_fakes` both updates use one forward pass of the generators, which do not change
        in between; without it each update runs its own, with its own noise, as the release does.
        With `accumulate` n the batch is split into n equal parts, whose gradients are averaged;
        each update then runs its own forward passes.

        Args:
            x_a: images of domain a, [N, C, H, W] in [-1, 1].
            x_b: images of domain b; N, C, H and W may differ from x_a's.
            noise: standard normal noise, as in `objective.Batch`; None draws it.

        Returns:
            The losses of `objective.LOSSES` with a weight above 0, detached scalars.

        Afterwards the generators' parameters have gradients, the discriminators' have none.

        Raises:
            ValueError: the batch cannot be divided by `accumulate`.
        """
        self.update_learning_rate()
        if self._graphed is not None and noise is None:
            return self._graphed(x_a, x_b)
        return self.updates(Batch(x_a, x_b, noise))

    def updates(self, batch: Batch) -> Losses:
        """Take a step as a call does, but for the schedules and the CUDA graph."""
        self.gen_opt.zero_grad()  # frees the memory of the last step's gradients
        with self._filters():
            decoded = None
            if self.config.share_fakes and self.config.accumulate == 1:
                with self._precision():
                    decoded = self._objective.decode_both(self.unit, batch)
            losses = self.descend(
                self.dis_opt, "discriminator_total", self._discriminator_losses(decoded), batch
            )
            self.dis_opt.zero_grad()
            self._write(self._dis_filters, self._dis_gradients)
            with frozen(self.unit.discriminators()):
                losses |= self.descend(
                    self.gen_opt, "generator_total", self._generator_losses(decoded), batch
                )
        if self.average is not None:
            self.average.update()
        return losses

    def dis_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None = None,
        decoded: AnyDecoded | None = None,
    ) -> Losses:
        """Update the discriminators; arguments as in `objective.discriminator_losses`."""
        self._check_whole(decoded)
        losses, batch = self._discriminator_losses(decoded), Batch(x_a, x_b, noise)
        with self._filters():
            return self.descend(self.dis_opt, "discriminator_total", losses, batch)

    def gen_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None = None,
        decoded: AnyDecoded | None = None,
    ) -> Losses:
        """Update the generators; arguments as in `objective.generator_losses`."""
        self._check_whole(decoded)
        losses, batch = self._generator_losses(decoded), Batch(x_a, x_b, noise)
        with self._filters(), frozen(self.unit.discriminators()):
            return self.descend(self.gen_opt, "generator_total", losses, batch)

    def _check_whole(self, decoded: AnyDecoded | None) -> None:
        if decoded is not None and self.config.accumulate > 1:
            raise ValueError("decoded belongs to a whole batch; leave it out with accumulate > 1")

    @property
    def _objective(self) -> ModuleType:
        return munit_objective if isinstance(self.config, MunitConfig) else objective

    def _discriminator_losses(self, decoded: AnyDecoded | None) -> Objective:
        return partial(
            self._objective.discriminator_losses, self.unit, config=self.config, decoded=decoded,
            call=self.compiled,
        )  # fmt: skip

    def _generator_losses(self, decoded: AnyDecoded | None) -> Objective:
        return partial(
            self._objective.generator_losses, self.unit, config=self.config,
            perceptual=self.perceptual, decoded=decoded, call=self.compiled,
        )  # fmt: skip

    def descend(self, optimizer: Optimizer, total: str, losses: Objective, batch: Batch) -> Losses:
        """Update by the gradient of the losses' mean over the batch's parts; return the means.

        Args:
            optimizer: of the parameters to update.
            total: the key of the loss to differentiate.
            losses: returns the losses for a part of the batch.
            batch: images and noise.
        """
        count, found = self.config.accumulate, []
        gradients = self._gen_gradients if optimizer is self.gen_opt else self._dis_gradients
        is_flat = gradients in self._flat
        (gradients.zero if is_flat else optimizer.zero_grad)()
        with precision.matmul_settings(precision.resolve(self.config.precision, self.device)):
            for part in batch.parts(count):
                with branches.joined():
                    with self._precision():
                        each = losses(part)
                    (each[total] / count).backward()
                found.append({name: torch.as_tensor(loss).detach() for name, loss in each.items()})
        if is_flat:
            gradients.gather()
        if self.config.clip_grad_norm:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip_grad_norm_(parameters, self.config.clip_grad_norm)
        optimizer.step()
        if count == 1:
            return found[0]
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}

    @contextmanager
    def _filters(self) -> Iterator[None]:
        """Lay out the filters of all networks, as they are now, for the calls inside the block.

        What changes filters inside has to `_write` them before they are used again. Before the
        block anything may have changed them, such as load_state_dict.
        """
        if self._keeps_filters:  # a block around this one does
            yield
            return
        self._keeps_filters = True
        try:
            self._write(self._gen_filters, self._gen_gradients)
            self._write(self._dis_filters, self._dis_gradients)
            yield
        finally:
            self._keeps_filters = False
            self._execution.filters.clear()
            self._flat.clear()

    def _write(self, filters: NetworkFilters, gradients: FlatGradients) -> None:
        grouped = self._execution.grouped
        grouped = self.device.type == "cuda" if grouped is None else grouped
        with self._precision():
            if filters.write(grouped, gradients):
                self._flat.add(gradients)

    def gradient_buffers(self) -> list[Tensor]:
        """Return the buffers that backward adds gradients to; none where autograd keeps them."""
        with self._filters():
            return [gradients.buffer for gradients in self._flat]

    def _precision(self) -> AbstractContextManager[object]:
        device = self.device
        return precision.autocast(precision.resolve(self.config.precision, device), device)

    @property
    def device(self) -> torch.device:
        """The networks' device."""
        return next(self.unit.parameters()).device

    @property
    def uses_graphs(self) -> bool:
        """Whether steps are replayed as a CUDA graph, after warm-up."""
        return self._graphed is not None

    def use_graphs(self, *, required: bool = False) -> None:
        """Capture the step as a CUDA graph after warm-up, and replay it from then on.

        Args:
            required: if the step cannot be captured, raise instead of logging a warning and
                continuing without a graph.

        Raises:
            ConfigError: the networks are not on a GPU.
            RuntimeError: from a later step, if `required` and the capture fails.
        """
        if self.device.type != "cuda":
            raise ConfigError(f"graphs=on needs an NVIDIA GPU, not {self.device}; use graphs=auto")
        for optimizer in (self.dis_opt, self.gen_opt):
            make_capturable(optimizer)
        self._graphed = GraphedStep(
            lambda x_a, x_b: self.updates(Batch(x_a, x_b)), required=required
        )  # fmt: skip

    def update_learning_rate(self) -> None:
        """Advance both schedules by one iteration; the release does so before the updates."""
        lr_schedule.advance((self.dis_scheduler, self.gen_scheduler))
        scheduler = self.gen_scheduler
        if isinstance(scheduler, StepLR):  # it multiplies the current rate
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
                if isinstance(group["lr"], Tensor):  # for CUDA graphs, rounded to float32
                    group["lr"] = self.learning_rate
        return state

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._stateful().items():
            if name in ("dis_opt", "gen_opt"):
                part.load_state_dict(state[name])
            elif name in state:  # absent if the schedule was constant: see `reset_settings`
                lr_schedule.restore(part, state[name])
        self._reset_execution()

    def reset_settings(self, iteration: int) -> None:
        """Set restored optimizers and schedules to the configuration's values at an iteration."""
        config = self.config
        for optimizer in (self.dis_opt, self.gen_opt):
            for group in optimizer.param_groups:
                group.update(optimizer.defaults)
                group["lr"], group["initial_lr"] = lr_schedule.rate(config, iteration), config.lr
        for scheduler in (self.dis_scheduler, self.gen_scheduler):
            if scheduler is not None:
                lr_schedule.reset(scheduler, config, iteration)
        self._reset_execution()

    def load_release_optimizers(self, state: dict, iteration: int) -> list[str]:
        """Restore the release's optimizer.pt, {"gen": ..., "dis": ...}, at an iteration.

        The configuration's settings and its rate at that iteration override the file's.

        Args:
            state: the content of the file.
            iteration: the number of iterations done.

        Returns:
            A line for each setting that differs.

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

    def _reset_execution(self) -> None:
        """Reset execution options, such as `fused`, that restored optimizers took from a state."""
        self.learning_rate = float(self.gen_opt.param_groups[0]["lr"])
        for optimizer in (self.dis_opt, self.gen_opt):
            reset_execution(optimizer)
        if self._graphed is not None:
            self.use_graphs(required=self._graphed.required)


@contextmanager
def frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Compute no gradients of parameters inside the block; inputs still get theirs."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
