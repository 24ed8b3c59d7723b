"""The state of a run of adaptation: what its iterations change, and its checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from fastunit import config
from fastunit.common.errors import CheckpointError, ConfigError
from fastunit.digits.images import Stream
from fastunit.digits.objective import Losses, Settings, settings_from
from fastunit.digits.step import SOURCE, TARGET, Adaptation
from fastunit.digits.task import Task
from fastunit.training import checkpoint, optim

SOURCE_ONLY = "source only"  # the method without adaptation
ACCURACIES = {"source_accuracy": SOURCE, "target_accuracy": TARGET}  # and whose test split's
KEPT = ("seed", "holdout", "geometry")  # settings that a run keeps: the data are drawn by them
_logger = logging.getLogger(__name__)


class AdaptationState:
    """Everything that a run of adaptation changes, and its way to and from a checkpoint.

    Seeds PyTorch's default generators with `settings.seed`. Args are those of `Adaptation`, but
    for `task`, the data.
    """

    def __init__(
        self, settings: Settings, task: Task, device: torch.device, source_only: bool = False
    ) -> None:
        if settings.warmup >= settings.iterations and not source_only:
            raise ConfigError(
                f"warmup={settings.warmup} leaves none of the iterations={settings.iterations} for "
                "adaptation; lower it with --set warmup=N, or raise --iterations"
            )
        self.settings, self.task, self.device = settings, task, device
        self.adaptation = Adaptation(settings, task.channels, device, source_only)
        self.method = SOURCE_ONLY if source_only else "adapted"
        self.spent = {"seconds": 0.0, "loop_seconds": 0.0}  # by all processes of the run
        self._streams = [
            Stream(images, settings.batch_size, 2 * settings.seed + number, **settings.deformation)
            for number, images in enumerate((task.source.images, task.target))
        ]

    @property
    def iteration(self) -> int:
        """How many steps were made."""
        return self.adaptation.iteration

    def advance(self) -> Losses:
        """Train on the next batch of each domain; returns detached scalars on the device."""
        (x_a, index), (x_b, _) = map(next, self._streams)
        return self.adaptation.advance(x_a, self.task.source.labels[index], x_b)

    def measure(self) -> dict[str, float]:
        """Return the accuracy on both test splits, all of them, by the networks as they are now.

        With `holdout`, also that on what of the source is held out, "held_out_accuracy".
        """
        splits = {key: (self.task.tests[domain], domain) for key, domain in ACCURACIES.items()}
        if self.task.held_out is not None:
            splits["held_out_accuracy"] = (self.task.held_out, SOURCE)
        return {
            key: self.adaptation.accuracy(split.images, split.labels, domain)
            for key, (split, domain) in splits.items()
        }

    def save(self, run_dir: Path) -> Path:
        """Write a checkpoint; raises TrainingDiverged rather than keep bad weights."""
        for network in (self.adaptation.gen, self.adaptation.dis):
            checkpoint.check_finite(network, self.iteration)
        return checkpoint.save(run_dir, self.state())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: tensors and plain values."""
        adaptation = self.adaptation
        return {
            "iteration": self.iteration,
            "config": config.to_dict(self.settings),
            **self._data(),
            "gen": adaptation.gen.state_dict(),
            "dis": adaptation.dis.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in adaptation.optimizers],
            **checkpoint.average_state(adaptation.average),
            "random": checkpoint.random_state(self.device),
            "streams": [stream.state_dict() for stream in self._streams],
            "spent": dict(self.spent),
        }

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Continue from what `state` returned; raises CheckpointError when it does not fit."""
        adaptation = self.adaptation
        try:
            self._compare(state, source)
            checkpoint.load_modules({"gen": adaptation.gen, "dis": adaptation.dis}, state, source)
            for optimizer, kept in zip(adaptation.optimizers, state["optimizers"], strict=True):
                optim.restore(optimizer, kept)
            for stream, kept in zip(self._streams, state["streams"], strict=True):
                stream.load_state_dict(kept)
            adaptation.iteration, self.spent = state["iteration"], dict(state["spent"])
            checkpoint.restore_average(adaptation.average, state, source, "classifier")
            checkpoint.restore_random_state(state["random"], self.device)
        except CheckpointError:
            raise
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{source} does not fit this run: {error}") from error

    def restore_release(self, path: Path) -> None:
        """Refuse a gen_XXXXXXXX.pt: raises CheckpointError."""
        raise CheckpointError(
            f"{path} is of the 2018 release, which has no digits; give the folder of a run of "
            "fastunit.adapt, or a checkpoint in it"
        )

    def _data(self) -> dict[str, str]:
        names = self.task.names
        return {"source": names[SOURCE], "target": names[TARGET], "method": self.method}

    def _compare(self, state: dict[str, Any], source: str) -> None:
        """Refuse another task, and say which settings are others now."""
        stored = checkpoint.stored_config(state, source, settings_from)
        before, now = config.to_dict(stored), config.to_dict(self.settings)
        kept = {key: (before[key], now[key]) for key in KEPT}
        kept |= {key: (state[key], value) for key, value in self._data().items()}
        for key, (old, new) in kept.items():
            if old != new:
                raise CheckpointError(
                    f"{source} was trained with {key} {old}, not {new}; continue with the same, or "
                    "start another run"
                )
        changes = [f"{key} {before[key]} -> {now[key]}" for key in now if before[key] != now[key]]
        if changes:
            _logger.info("going on with changed settings: %s", ", ".join(changes))
