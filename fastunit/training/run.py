"""A training run from the check of its files to its result."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fastunit import config as configuration
from fastunit.common import devices
from fastunit.common import progress as bars
from fastunit.common.errors import ConfigError, UserError
from fastunit.config import Config
from fastunit.data import builtin, discovery, validation
from fastunit.data.discovery import Domains
from fastunit.data.image_io import Reading
from fastunit.data.validation import SizeRule
from fastunit.training import allocator, held_out, run_dir
from fastunit.training.loop import Callback, Stop, stop_on_signals
from fastunit.training.run_dir import Run, find_run
from fastunit.training.state import Session
from fastunit.training.trainer import Trainer

NAME = "unit"  # of a run's folder below runs/, where `fit` is given none
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What has become of a training run.

    Attributes:
        folder: the run's folder, which `fastunit.load` takes.
        iteration: the last one; its checkpoint is in the folder.
        finished: whether that is `max_iter`, and not where the run was stopped.
        measures: what result.json holds: seconds, images_per_s and, for each direction, the
            held-out errors; empty where the run was stopped.
        signal: the signal that has stopped it, where these are heeded.
    """

    folder: Path
    iteration: int
    finished: bool
    measures: dict[str, Any] = field(default_factory=dict)
    signal: int | None = None


def fit(
    config: Config,
    *,
    output: str | Path | None = None,
    resume: bool | str | Path = False,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> TrainingResult:
    """Train UNIT as `python -m fastunit.train` does, and leave the same run folder.

    Args:
        config: what to train on what, as from `fastunit.config.load`; it is checked once more.
        output: the run's folder, which must be new or empty; None is the first of runs/unit,
            runs/unit-2, ... that is free.
        resume: True continues the newest checkpoint in `output` (without one, the newest of
            runs/unit, runs/unit-2, ...), and starts a run where there is none. A path continues
            that run's folder, checkpoint or release's gen_*.pt, in its own folder if `output` is
            None. `config` holds for what follows; its networks must be those of the checkpoint.
        device: "cpu", "cuda", "cuda:N" or a torch.device; None is the first GPU, or the CPU where
            there is none.
        callback: called with an iteration and its losses by name (means since the last call, as
            floats, with learning_rate, images_per_s and data_wait) every `log_iter` iterations,
            on a GPU one such interval late. Returning True stops the run after a checkpoint; an
            exception ends it without one.
        progress: whether to show progress bars on stderr.

    Returns:
        The folder, the iteration reached and what was measured.

    Raises:
        ConfigError: a key of the configuration, or `output`, is wrong.
        DataError: image files are missing or unreadable.
        CheckpointError: there is nothing to continue, or it does not fit the configuration.
        UserError: another process trains in the folder; no such device; its memory is too small.
        TrainingDiverged: a loss or weight is not finite; the earlier checkpoints stay.

    Seeds PyTorch's default generators with `config.seed`. On a CPU the process keeps the memory
    that it frees from then on (`allocator.keep_freed_memory`). Messages go to loggers below
    "fastunit"; nothing is printed. Ctrl-C raises KeyboardInterrupt as anywhere; what the last
    checkpoint holds can be resumed.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"config must be a Config, which fastunit.config.from_dict makes, not {config!r}"
        )
    config = configuration.from_dict(configuration.to_dict(config))
    wanted = {True: "auto", False: None}[resume] if isinstance(resume, bool) else str(resume)
    run = find_run(None if output is None else str(output), wanted, NAME)
    return train(config, run, devices.choose(device), callback=callback, progress=progress)


def train(
    config: Config,
    run: Run,
    device: torch.device,
    *,
    callback: Callback | None = None,
    progress: bool = True,
    signals: bool = False,
) -> TrainingResult:
    """Train, measure and return the result; what `fit` and the command line share.

    Args and errors are those of `fit`. With `signals`, the first SIGINT or SIGTERM during
    training stops it after a checkpoint; possible in the main thread only.
    """
    started = time.perf_counter()
    with bars.shown(progress), devices.current(device):
        if device.type == "cpu":
            allocator.keep_freed_memory()
        domains = checked_files(config)
        pairs = held_out.find_pairs(domains, config)
        session = Session(config, device)
        run.restore(session)
        shown = held_out.shown_images(domains, config, device)
        with run.claim() as folder:
            run_dir.describe(folder, config, device)
            _logger.info("%s", session.manner())
            trainer = Trainer(session, domains, folder, shown, started, callback)
            with stop_on_signals() if signals else nullcontext(Stop()) as stop:
                finished = _run(trainer, stop)
            measures = trainer.finish(pairs) if finished else {}
    return TrainingResult(folder, session.iteration, finished, measures, stop.signal)


def checked_files(config: Config) -> Domains:
    """Find the images and read every new one; raises DataError listing the bad ones.

    The demo's images are drawn, where they have not been yet.
    """
    if config.data.builtin != "none":
        root = builtin.demo_root(builtin=config.data.builtin)
        config = replace(config, data_root=str(root))
    found = discovery.find_domains(config)
    wanted = {}
    for split in discovery.SPLITS:
        wanted[split] = (getattr(found, split), _rule(config, split))
    return Domains(
        **validation.validate_all(wanted, workers=config.threads, skip_bad=config.data.skip_bad)
    )


def image_counts(config: Config) -> dict[str, int]:
    """Return how many images of each split there are, having checked them as training does.

    The demo's are checked by their size alone: they are drawn when training starts.
    """
    if config.data.builtin != "none":
        height, width = builtin.size(config.data.builtin)
        validation.require_dali()
        for split in discovery.SPLITS:
            validation.check_channels(_rule(config, split).reading.channels)
            if reason := _rule(config, split).problem(height, width):
                raise UserError(
                    f"the drawn pictures of data.builtin={config.data.builtin} are {reason}"
                )
        return builtin.DEMO_COUNTS
    checked = checked_files(config)
    return {split: len(getattr(checked, split)) for split in discovery.SPLITS}


def _run(trainer: Trainer, stop: Stop) -> bool:
    """Run the loop; tell what to do about it where it cannot go on."""
    try:
        return trainer.run(stop)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is full ({error}); set checkpoint_activations=true, or lower "
            "batch_size, crop_image_height or crop_image_width (--dry-run shows the expected "
            "memory)"
        ) from error


def _rule(config: Config, split: str) -> SizeRule:
    domain = config.domain(split[-1])
    reading = Reading(domain.channels, domain.value_range, f"data.range_{domain.name}")
    return SizeRule(domain.new_size, config.crop, reading)
