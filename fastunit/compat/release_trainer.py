"""What the 2018 releases' trainer classes have in common: `UNIT_Trainer` and `MUNIT_Trainer`.

Subclasses, replaced methods, networks, hooks, optimizers and schedules are honoured.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from fastunit.common import files
from fastunit.common.errors import CheckpointError
from fastunit.compat.hyperparameters import NETWORKS, SCHEDULE, changed
from fastunit.config import Config
from fastunit.models.discriminator import Discriminator, widened
from fastunit.models.domain_pair import TrainablePair
from fastunit.models.layers import moved
from fastunit.models.perceptual import Perceptual, as_vgg_takes, load_perceptual
from fastunit.models.unit import networks
from fastunit.training import lr_schedule, optim, overrides, release_files
from fastunit.training.objective import Batch, Losses, Noise
from fastunit.training.step import TrainStep


class ReleaseTrainer(nn.Module):
    """Networks, optimizers and schedules under the release's names.

    Args:
        settings: the configuration; selects the networks.

    Attributes:
        KINDS: the attribute for each loss of `objective.LOSSES`.
        METHODS: what the updates call, unmodified, by name.
        PLAIN: the objective by calls of methods that may be replaced.
        WEIGHTS: keys of the loss weights that an update takes.
    """

    KINDS: ClassVar[Mapping[str, str]]
    METHODS: ClassVar[Mapping[str, object]]
    PLAIN: ClassVar[ModuleType]
    WEIGHTS: ClassVar[tuple[str, ...]]

    dis_a: Discriminator
    dis_b: Discriminator
    gen_opt: torch.optim.Optimizer
    dis_opt: torch.optim.Optimizer
    gen_scheduler: LRScheduler | None
    dis_scheduler: LRScheduler | None
    vgg: nn.Module | None

    def __init__(self, settings: Config) -> None:
        super().__init__()
        unit = moved(networks(settings))  # channels_last, in which convolutions are faster
        for name in NETWORKS:
            setattr(self, name, getattr(unit, name))
        path = settings.vgg_model_path
        own = "compute_vgg_loss" in overrides.replaced(self, self.METHODS)
        needed = settings.vgg_w > 0 and not (own and path is None)
        self.vgg = _vgg(path) if needed else None
        self.instancenorm = nn.InstanceNorm2d(512)  # of the perceptual features
        self._settings, self._step = settings, TrainStep(unit, settings)
        for name in ("dis_opt", "gen_opt", "dis_scheduler", "gen_scheduler"):
            setattr(self, name, getattr(self._step, name))
        self._built = overrides.AsBuilt(self._networks())
        self._looked_at: list[int] = []  # ids that _warn_of_untrained has checked
        self._instancenorm = [self.instancenorm]  # in a list: not a second state_dict entry
        for name in self.KINDS.values():
            setattr(self, name, 0)

    def dis_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        hyperparameters: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Update the discriminators and set their losses as attributes.

        Args:
            x_a: images of domain a; sides are multiples of the downsampling.
            x_b: images of domain b; N, C, H and W may differ from x_a's.
            hyperparameters: loss weights for this update, as in the release; None: those of the
                constructor.
            noise: standard normal, keys "a" and "b": noise of the codes' shapes, or MUNIT's styles
                of the translations to a and to b, [N, style_dim, 1, 1]; None draws it.

        Raises:
            ValueError: images, weights or noise do not fit.
        """
        step = self._ready(hyperparameters)
        if self._changes():
            how = self.dis_opt, "discriminator_total", self.PLAIN.discriminator_losses
            losses = self._plain(*how, x_a, x_b, noise)
        else:
            losses = step.dis_update(x_a, x_b, noise)
        self._publish(losses, of_discriminators=True)

    def gen_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        hyperparameters: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Update the generators and set their losses as attributes.

        Args:
            x_a: as in `dis_update`.
            x_b: as in `dis_update`.
            hyperparameters: as in `dis_update`.
            noise: as in `dis_update`, for UNIT with keys "ba" and "ab" too.

        Raises:
            ValueError: images, weights or noise do not fit, or vgg_w is above 0 without `vgg`.
        """
        step = self._ready(hyperparameters)
        if self._changes():
            how = self.gen_opt, "generator_total", self.PLAIN.generator_losses
            losses = self._plain(*how, x_a, x_b, noise)
        else:
            losses = step.gen_update(x_a, x_b, noise)
        self._publish(losses, of_discriminators=False)

    def update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        hyperparameters: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Update both, as `dis_update` and then `gen_update` do, in less time.

        One forward pass of the generators, with the same noise, serves both updates, unless the
        constructor's mapping has `share_fakes: false`; the release draws other noise for the
        second. The updates are called one after the other where they are overridden, or anything
        else is replaced.

        Args:
            x_a: as in `dis_update`.
            x_b: as in `dis_update`.
            hyperparameters: as in `dis_update`.
            noise: as in `gen_update`.

        Raises:
            ValueError: as `gen_update`.
        """
        step = self._ready(hyperparameters)
        if overrides.replaced(self, _UPDATES) or self._changes():
            given = {} if noise is None else {"noise": noise}
            self.dis_update(x_a, x_b, hyperparameters, **given)
            self.gen_update(x_a, x_b, hyperparameters, **given)
            return
        losses = step.updates(Batch(x_a, x_b, noise))
        self._publish(losses, of_discriminators=True)
        self._publish(losses, of_discriminators=False)

    def update_learning_rate(self) -> None:
        """Advance the schedules by one iteration."""
        for name in ("dis", "gen"):
            scheduler = getattr(self, f"{name}_scheduler")
            if scheduler is not None and scheduler.optimizer is not getattr(self, f"{name}_opt"):
                warnings.warn(
                    f"{name}_scheduler sets the rate of another optimizer than {name}_opt; assign "
                    f"{name}_scheduler too (None: no schedule)",
                    stacklevel=2,
                )
        lr_schedule.advance((self.dis_scheduler, self.gen_scheduler))

    def recon_criterion(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean absolute difference of two tensors of equal shape, a scalar."""
        return widened(input - target).abs().mean()

    def compute_vgg_loss(self, vgg: nn.Module, img: Tensor, target: Tensor) -> Tensor:
        """Return the perceptual distance of two images, a scalar.

        Args:
            vgg: the attribute `vgg`, or any module that returns features [N, 512, P, Q] for BGR
                images of 0..255 minus the mean; `instancenorm` normalizes them.
            img: images [N, C, H, W] in [-1, 1], C 1 or 3.
            target: images of the same shape.
        """
        own = isinstance(vgg, Perceptual)
        features = vgg.features if own else lambda x: vgg(as_vgg_takes(x))
        found, wanted = (self.instancenorm(widened(features(x))) for x in (img, target))
        return (found - wanted).square().mean()

    def save(self, snapshot_dir: str | Path, iterations: int) -> None:
        """Write gen_%08d.pt and dis_%08d.pt, numbered iterations + 1, and optimizer.pt.

        Args:
            snapshot_dir: the folder.
            iterations: the last iteration, counted from 0.
        """
        folder = Path(snapshot_dir)
        release_files.save_networks(self._unit(), folder, iterations + 1)
        optimizers = {name: each.state_dict() for name, each in self._optimizers().items()}
        files.save(optimizers, folder / "optimizer.pt")

    def resume(
        self, checkpoint_dir: str | Path, hyperparameters: Mapping[str, Any] | None = None
    ) -> int:
        """Load the newest files that `save`, or the release, wrote, and print their iteration.

        As in the release, the optimizers continue with the state in optimizer.pt, learning rates
        included, and the schedules are rebuilt from `hyperparameters` at that iteration. An
        assigned schedule is kept, and set to that iteration.

        Args:
            checkpoint_dir: the folder.
            hyperparameters: the schedule's keys are used; None: the constructor's.

        Returns:
            The iteration in the files' names.

        Raises:
            CheckpointError: there are no such files, or they do not fit the networks.
        """
        folder, unit = Path(checkpoint_dir), self._unit()
        iteration = _newest(folder)
        release_files.load_networks(unit, folder / f"gen_{iteration:08d}.pt", expect="gen")
        release_files.load_networks(unit, folder / f"dis_{iteration:08d}.pt", expect="dis")
        optim.load(self._optimizers(), files.read(folder / "optimizer.pt"))
        settings = changed(self._settings, hyperparameters, SCHEDULE)
        for name, optimizer in self._optimizers().items():
            optim.reset_execution(optimizer)
            scheduler = getattr(self, f"{name}_scheduler")
            if scheduler is getattr(self._step, f"{name}_scheduler"):
                scheduler = lr_schedule.scheduler(optimizer, settings)
                setattr(self, f"{name}_scheduler", scheduler)
                setattr(self._step, f"{name}_scheduler", scheduler)
            if scheduler is not None:
                scheduler.last_epoch = iteration
                scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        print(f"Resume from iteration {iteration}")  # as the release does
        return iteration

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluate inside the block; train after it, as the release does."""
        self.eval()
        try:
            yield
        finally:
            self.train()

    def _networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in NETWORKS}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"gen": self.gen_opt, "dis": self.dis_opt}

    def _unit(self) -> TrainablePair:
        """Return the current networks in the form that the training step takes."""
        for name, network in self._networks().items():
            setattr(self._step.unit, name, network)
        return self._step.unit

    def _ready(self, hyperparameters: Mapping[str, Any] | None) -> TrainStep:
        """Return the training step, updated from the attributes and with the loss weights."""
        self._unit()
        step = self._step
        step.dis_opt, step.gen_opt = self.dis_opt, self.gen_opt
        step.perceptual = self.vgg
        self._warn_of_untrained()
        step.config = changed(self._settings, hyperparameters, self.WEIGHTS)
        own = "compute_vgg_loss" in overrides.replaced(self, self.METHODS)
        if step.config.vgg_w > 0 and self.vgg is None and not own:
            raise ValueError(f"vgg_w={step.config.vgg_w} needs the perceptual term: assign `vgg`")
        return step

    def _warn_of_untrained(self) -> None:
        """Warn, once, if a network was assigned but not an optimizer with its parameters."""
        parts = *self._networks().values(), self.gen_opt, self.dis_opt
        ids = [id(part) for part in parts]
        if ids == self._looked_at:
            return
        self._looked_at = ids
        for name, network in self._networks().items():
            optimizer = self._optimizers()[name[:3]]
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            own = [p for p in network.parameters() if p.requires_grad]
            if own and not any(id(p) in trained for p in own):
                message = f"{name[:3]}_opt holds no parameter of {name}, which is not trained"
                warnings.warn(message, stacklevel=4)

    def _changes(self) -> list[str]:
        """Return what was modified or replaced; if anything, updates run `plain_objective`."""
        found = overrides.replaced(self, self.METHODS) + self._built.changes(self._networks())
        if self._step.config.vgg_w > 0:
            found += overrides.changes(self.vgg, Perceptual, "vgg")
            if self.instancenorm is not self._instancenorm[0]:
                found.append("instancenorm")
        if found and self._settings.latent == "learned":
            raise ValueError(
                f"latent=learned cannot be combined with what has been replaced: "
                f"{', '.join(found[:3])}; use latent=unit"
            )
        return found

    def _plain(
        self,
        optimizer: torch.optim.Optimizer,
        total: str,
        objective: Callable[..., Losses],
        x_a: Tensor,
        x_b: Tensor,
        noise: Noise | None,
    ) -> Losses:
        """Update with an objective of `plain_objective`; return its losses."""
        losses = partial(objective, self, config=self._step.config)
        return self._step.descend(optimizer, total, losses, Batch(x_a, x_b, noise))

    def _publish(self, losses: Losses, *, of_discriminators: bool) -> None:
        for name, attribute in self.KINDS.items():
            if name.startswith("discriminator_") == of_discriminators:
                setattr(self, attribute, losses.get(name, 0))


_UPDATES = {name: vars(ReleaseTrainer)[name] for name in ("dis_update", "gen_update")}


def _vgg(path: str | Path | None) -> nn.Module:
    """Return the perceptual term of a file, or of the release's folder with models/vgg16.weight."""
    if path is None or not Path(path).is_dir():
        return load_perceptual(path)
    from fastunit.compat.utils import load_vgg16  # needs the extra `train`

    return load_vgg16(Path(path) / "models").requires_grad_(False)


def _newest(folder: Path) -> int:
    numbers = [
        int(match[1])
        for path in folder.glob("gen_*.pt")
        if (match := re.fullmatch(r"gen_(\d{8})\.pt", path.name))
    ]
    if not numbers:
        raise CheckpointError(f"{folder} holds no gen_XXXXXXXX.pt to resume from")
    return max(numbers)
