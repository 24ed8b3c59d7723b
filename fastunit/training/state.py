"""The state of a training run: networks, optimizers, average, data position, random numbers."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from fastunit import config
from fastunit.common import files, precision
from fastunit.common.errors import CheckpointError
from fastunit.config import Config
from fastunit.data.discovery import Domains
from fastunit.data.file_list import Files
from fastunit.data.image_io import reading_of
from fastunit.data.pipeline import DomainLoader
from fastunit.models.domain_pair import DomainPair
from fastunit.models.layers import moved
from fastunit.models.perceptual import load_perceptual
from fastunit.models.unit import networks
from fastunit.training import checkpoint, checkpoint_schema, optim, release_files
from fastunit.training.ema import Average
from fastunit.training.objective import Losses
from fastunit.training.step import TrainStep
from fastunit.training.streams import Stream

ADAM_KEYS = ("lr", "beta1", "beta2", "weight_decay")
_DECAY = ("decay_from", "max_iter")
SCHEDULE_KEYS = {"step": ("step_size", "gamma"), "linear": _DECAY, "cosine": _DECAY}
MEMORY_FORMAT = torch.channels_last  # of the networks
_logger = logging.getLogger(__name__)


class TrainState:
    """The state of a training run; saves it to checkpoints and restores it.

    Seeds PyTorch's default generators with `config.seed`. Networks are channels_last on `device`.
    `streams` are both domains' batches where they do not come from image files.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        streams: tuple[Stream, Stream] | None = None,
    ) -> None:
        self.config, self.device, self.iteration = config, device, 0
        self._streams = streams
        self.positions = {"a": 0, "b": 0}  # samples of each domain trained on
        self.files = {"a": "", "b": ""}  # fingerprints of the domains' file lists
        self.spent = {"seconds": 0.0, "loop_seconds": 0.0}  # over all resumptions of the run
        precision.resolve(config.precision, device)  # raises before anything is built
        torch.manual_seed(config.seed)
        perceptual = load_perceptual(config.vgg_model_path) if config.vgg_w > 0 else None
        self.unit = moved(networks(config), device, MEMORY_FORMAT)
        self._pair = self.unit.generator_pair()
        self._average = Average(self._pair, config.ema_decay) if config.ema_decay else None
        perceptual = perceptual and perceptual.to(device)
        self.step = TrainStep(self.unit, config, perceptual, self._average)
        if config.graphs == "on" or (config.graphs == "auto" and device.type == "cuda"):
            self.step.use_graphs(required=config.graphs == "on")

    @property
    def generator_pair(self) -> DomainPair:
        """The generators for samples and evaluation: averaged ones if `ema_decay` is on."""
        return self._average.module if self._average is not None else self._pair

    def execution_summary(self) -> str:
        """Describe how steps are computed: precision, CUDA graph and compiler, or why not."""
        settings, gpu = self.config, self.device.type == "cuda"
        graphs = compiled = "on"
        if not self.step.uses_graphs:
            graphs = "off (graphs=off)" if gpu else "off (no GPU)"
        if not self.step.compiled.is_on:
            why = "compile=off" if settings.compile == "off" else "compile=auto is for GPUs"
            why = "it failed" if self.step.compiled.failed else why
            compiled = f"off ({why})"
        name = precision.resolve(settings.precision, self.device)
        return f"precision {name}; CUDA graph {graphs}; torch.compile {compiled}"

    def advance(self, x_a: Tensor, x_b: Tensor) -> Losses:
        """Train on one batch of each domain; returns detached scalars on the device."""
        losses = self.step(x_a, x_b)
        self.iteration += 1
        self.positions["a"] += len(x_a)
        self.positions["b"] += len(x_b)
        return losses

    def loaders(self, domains: Domains) -> tuple[Iterator[Tensor], ...]:
        """Open both domains' training streams at the current positions."""
        if self._streams is not None:
            return self._streams
        self._compare_files(domains)
        return tuple(
            DomainLoader(
                files,
                channels=domain.channels,
                new_size=domain.new_size,
                batch_size=self.config.batch_size * self.config.accumulate,
                crop=self.config.crop,
                seed=self.config.seed,
                stream=stream,
                device=self.device,
                threads=self.config.threads,
                position=self.positions[domain.name],
                flip=self.config.data.flip,
                value_range=domain.value_range,
                limits=reading_of(self.config, domain.name).limits,
                loader=self.config.data.loader,
            )
            for stream, (domain, files) in enumerate(
                zip(map(self.config.domain, "ab"), (domains.train_a, domains.train_b), strict=True)
            )
        )

    def _compare_files(self, domains: Domains) -> None:
        """Warn if the image files differ from those at the start: their order then differs."""
        for name, paths in (("a", domains.train_a), ("b", domains.train_b)):
            names = b"\n".join(os.fsencode(os.path.basename(path)) for path in Files(paths).names)
            digest = f"{len(paths)} files, {hashlib.sha1(names).hexdigest()}"
            if self.files[name] not in ("", digest):
                _logger.warning(
                    "domain %s has other files than when the run was stopped; their order differs",
                    name,
                )
            self.files[name] = digest

    def save(self, run_dir: Path) -> Path:
        """Write a checkpoint; raises TrainingDiverged if a weight is not finite."""
        checkpoint.check_finite(self.unit, self.iteration)
        return checkpoint.save(run_dir, self.state(), self.unit)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values."""
        return {
            "iteration": self.iteration,
            "config": config.to_dict(self.config),
            "unit": self.unit.state_dict(),
            "step": self.step.state_dict(),
            **checkpoint.average_state(self._average),
            "random": checkpoint.random_state(self.device),
            "positions": dict(self.positions),
            "files": dict(self.files),
            "spent": dict(self.spent),
            **({"streams": [s.state() for s in self._streams]} if self._streams else {}),
        }

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Restore what `state` returned; raises CheckpointError if it does not fit."""
        checkpoint_schema.check(state, source)
        checkpoint_schema.check_moments(state["step"], state["iteration"], source)
        checkpoint.load_modules({"unit": self.unit}, state, source)
        try:
            self.iteration, self.positions = state["iteration"], dict(state["positions"])
            self.files, self.spent = dict(state["files"]), dict(state["spent"])
            self.step.load_state_dict(state["step"])
            for optimizer in (self.step.dis_opt, self.step.gen_opt):
                if isinstance(optimizer, Adam):
                    optim.check_moments(optimizer)
            self._follow_settings(checkpoint.stored_config(state, source))
            self._restore_streams(state.get("streams"))
            checkpoint.restore_random_state(state["random"], self.device)
        except CheckpointError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{source} does not fit this configuration: {error}") from error
        checkpoint.restore_average(self._average, state, source)

    def _restore_streams(self, states: list[Any] | None) -> None:
        for index, stream in enumerate(self._streams or ()):
            if not stream.restore(states and states[index]):
                _logger.warning(
                    "the loader of domain %s has no state_dict and load_state_dict: it starts "
                    "anew, so the run does not go on as it would have",
                    "ab"[index],
                )

    def restore_release(self, path: Path) -> None:
        """Continue from a gen_XXXXXXXX.pt of the release and the files next to it.

        dis_XXXXXXXX.pt must exist; optimizer.pt is used if it exists. The iteration is that of the
        file's name. Learning rate and other optimizer settings are the configuration's at that
        iteration; differences from optimizer.pt are logged. Random numbers and data positions
        start anew.
        """
        match = re.fullmatch(r"gen_(\d{8})\.pt", path.name)
        if match is None:
            raise CheckpointError(
                f"{path} is neither a checkpoint of fastunit nor named like gen_00010000.pt"
            )
        release_files.load_networks(self.unit, path, expect="gen")
        release_files.load_networks(self.unit, path.with_name(f"dis_{match[1]}.pt"), expect="dis")
        optimizers, self.iteration = path.with_name("optimizer.pt"), int(match[1])
        if optimizers.is_file():
            changes = self.step.load_release_optimizers(files.read(optimizers), self.iteration)
            if changes:
                text = "the configuration overrides %s: %s"
                _logger.info(text, optimizers, ", ".join(changes))
        else:
            self.step.reset_settings(self.iteration)
            _logger.warning(
                "%s does not exist: Adam starts anew, at a learning rate of %g",
                optimizers,
                self.step.learning_rate,
            )
        checkpoint.restore_average(self._average, checkpoint.average_state(None), str(path))

    def _follow_settings(self, before: Config) -> None:
        """Apply optimizer settings that differ from the checkpoint's, and log them."""
        own = SCHEDULE_KEYS.get(self.config.lr_policy, ())
        keys = [
            key
            for key in (*ADAM_KEYS, "lr_policy", "warmup_iter", *own)
            if getattr(before, key) != getattr(self.config, key)
        ]
        if keys:
            self.step.reset_settings(self.iteration)
            changes = (f"{k} {getattr(before, k)} -> {getattr(self.config, k)}" for k in keys)
            _logger.info("continuing with changed settings: %s", ", ".join(changes))
