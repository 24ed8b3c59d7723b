"""The state of a training run: networks, optimisers, average, data position, random numbers."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastunit import checkpoint, config, files, release
from fastunit.config import Config
from fastunit.data import DomainLoader
from fastunit.errors import CheckpointError, TrainingDiverged
from fastunit.images import Domains
from fastunit.networks import UNIT, GeneratorPair
from fastunit.objective import Losses
from fastunit.perceptual import load_perceptual
from fastunit.step import TrainStep

_logger = logging.getLogger(__name__)


class Session:
    """Everything that a training run changes, and its way to and from a checkpoint.

    Seeds PyTorch's default generators with `config.seed`. Networks are channels_last on `device`.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device, self.iteration = config, device, 0
        self.positions = {"a": 0, "b": 0}  # samples of each domain trained on
        torch.manual_seed(config.seed)
        perceptual = load_perceptual(config.vgg_model_path) if config.vgg_w > 0 else None
        self.unit = UNIT(config).to(device, memory_format=torch.channels_last)
        self.step = TrainStep(self.unit, config, perceptual and perceptual.to(device))
        self._pair = GeneratorPair(self.unit.gen_a, self.unit.gen_b)
        self._average = None
        if config.ema_decay:
            decay = get_ema_multi_avg_fn(config.ema_decay)
            self._average = AveragedModel(self._pair, multi_avg_fn=decay)

    @property
    def translator(self) -> GeneratorPair:
        """The generators to look at: averaged ones where `ema_decay` is on."""
        return self._average.module if self._average is not None else self._pair

    def advance(self, x_a: Tensor, x_b: Tensor) -> Losses:
        """Train on one batch of each domain; returns detached scalars on the device."""
        losses = self.step(x_a, x_b)
        if self._average is not None:
            self._average.update_parameters(self._pair)
        self.iteration += 1
        self.positions["a"] += len(x_a)
        self.positions["b"] += len(x_b)
        return losses

    def loaders(self, domains: Domains) -> tuple[DomainLoader, DomainLoader]:
        """Open both domains' training streams where this session stands in them."""
        settings = self.config
        shared = {
            "batch_size": settings.batch_size,
            "crop": settings.crop,
            "seed": settings.seed,
            "device": self.device,
            "threads": settings.num_workers,
        }
        return (
            DomainLoader(
                domains.train_a,
                channels=settings.input_dim_a,
                new_size=settings.resize_a(),
                stream=0,
                position=self.positions["a"],
                **shared,
            ),
            DomainLoader(
                domains.train_b,
                channels=settings.input_dim_b,
                new_size=settings.resize_b(),
                stream=1,
                position=self.positions["b"],
                **shared,
            ),
        )

    def save(self, run_dir: Path) -> Path:
        """Write and prune checkpoints; raises TrainingDiverged rather than keep bad weights."""
        for name, parameter in self.unit.named_parameters():
            if not parameter.isfinite().all():
                raise TrainingDiverged(f"{name} is not finite after iteration {self.iteration}")
        path = checkpoint.save(run_dir, self.state(), self.unit)
        checkpoint.prune(run_dir, self.config.checkpoint, self.config.snapshot_save_iter)
        return path

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: tensors and plain values."""
        average = self._average
        return {
            "iteration": self.iteration,
            "config": config.to_dict(self.config),
            "unit": self.unit.state_dict(),
            "step": self.step.state_dict(),
            "ema": average.module.state_dict() if average is not None else None,
            "ema_updates": int(average.n_averaged) if average is not None else 0,
            "random": checkpoint.random_state(self.device),
            "positions": dict(self.positions),
        }

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Continue from what `state` returned; raises CheckpointError when it does not fit."""
        checkpoint.load_modules({"unit": self.unit}, state, source)
        try:
            self.step.load_state_dict(state["step"])
            self.iteration, self.positions = state["iteration"], dict(state["positions"])
            checkpoint.restore_random_state(state["random"], self.device)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{source} does not fit this configuration: {error}") from error
        self._restore_average(state, source)

    def restore_release(self, path: Path) -> None:
        """Continue from a gen_XXXXXXXX.pt of the release and the files beside it.

        dis_XXXXXXXX.pt must be there; optimizer.pt is used where it is. The file's name gives the
        iteration. Random numbers and data start afresh.
        """
        match = re.fullmatch(r"gen_(\d{8})\.pt", path.name)
        if match is None:
            raise CheckpointError(
                f"{path} is neither a checkpoint of fastunit nor named like gen_00010000.pt"
            )
        release.load_networks(self.unit, path, expect="gen")
        release.load_networks(self.unit, path.with_name(f"dis_{match[1]}.pt"), expect="dis")
        optimizers = path.with_name("optimizer.pt")
        if optimizers.is_file():
            self.step.load_release_optimizers(files.read(optimizers), int(match[1]))
        else:
            _logger.warning("%s is not there: Adam starts afresh", optimizers)
        self.iteration = int(match[1])
        self._restore_average({"ema": None, "ema_updates": 0}, str(path))

    def _restore_average(self, state: dict[str, Any], source: str) -> None:
        average = self._average
        if average is None:
            return
        if state["ema"] is None:
            _logger.warning("%s has no averaged generators: the average starts here", source)
            average.module.load_state_dict(self._pair.state_dict())
        else:
            checkpoint.load_modules({"ema": average.module}, state, source)
        average.n_averaged.fill_(state["ema_updates"])
