"""A training run, from checking its files to its result."""

from __future__ import annotations

import logging
import os
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
from fastunit.data.image_io import reading_of
from fastunit.data.validation import SizeRule
from fastunit.training import allocator, held_out, run_dir
from fastunit.training.determinism import deterministic
from fastunit.training.loop import Callback
from fastunit.training.run_dir import Run, find_run
from fastunit.training.state import TrainState
from fastunit.training.stopping import Stop, stop_on_signals
from fastunit.training.trainer import Trainer
from fastunit.training.watchdog import Watchdog

NAME = "unit"  # default name of `fit`'s run folder in runs/
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        folder: the run's folder, an argument for `fastunit.load`.
        iteration: the last iteration; its checkpoint is in the folder.
        finished: whether `max_iter` was reached; False if the run was stopped.
        measures: the content of result.json: seconds, images_per_s and, for each direction, the
            held-out errors; empty if the run was stopped.
        signal: the signal that stopped the run, if signals are handled.
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
    """Train UNIT as `python -m fastunit.train` does, with the same run folder.

    Args:
        config: the configuration, from `fastunit.config.load` or `from_dict`.
        output: the run's folder, which must be new or empty; None is the first unused one of
            runs/unit, runs/unit-2, ...
        resume: True continues the newest checkpoint in `output` (without `output`, the newest of
            runs/unit, runs/unit-2, ...), and starts a new run if there is none. A path continues
            that run's folder, checkpoint or release's gen_*.pt, in its own folder if `output` is
            None. `config` applies from then on; its networks must be those of the checkpoint.
        device: "cpu", "cuda", "cuda:N" or a torch.device; None is the first GPU, or the CPU if
            there is none.
        callback: called every `log_iter` iterations with the iteration and its losses by name
            (means since the last call, as floats, with learning_rate, images_per_s and data_wait);
            on a GPU one interval later. If it returns True, the run stops after a checkpoint; an
            exception ends the run without one.
        progress: whether to show progress bars on stderr.

    Returns:
        The folder, the iteration reached and the evaluation.

    Raises:
        ConfigError: a key of the configuration, or `output`, is wrong.
        DataError: image files are missing or unreadable.
        CheckpointError: there is nothing to continue, or it does not fit the configuration.
        UserError: another process trains in the folder, the device does not exist, or its memory
            is too small.
        TrainingDiverged: a loss or weight is not finite; earlier checkpoints are kept.

    Seeds PyTorch's default generators with `config.seed`. On a CPU the process keeps freed memory
    from then on (`allocator.keep_freed_memory`). Messages go to loggers below "fastunit"; nothing
    is printed. Ctrl-C raises KeyboardInterrupt; the run can be resumed from its last checkpoint.
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
    """Train, evaluate and return the result: the common part of `fit` and the command line.

    Arguments and errors are those of `fit`. With `signals`, the first SIGINT, SIGTERM or SIGHUP
    stops training after a checkpoint; only possible in the main thread.
    """
    started = time.perf_counter()
    config = _with_absolute_paths(config)
    with (
        bars.shown(progress),
        devices.current(device),
        deterministic(config.deterministic),
        stop_on_signals() if signals else nullcontext(Stop()) as stop,
    ):
        if device.type == "cpu":
            allocator.keep_freed_memory()
        domains = checked_files(config)
        pairs = held_out.find_pairs(domains, config)
        state = TrainState(config, device)
        run.restore(state)
        _refuse_finished(state.iteration, config, run)
        shown = held_out.shown_images(domains, config, device)
        with run.claim() as folder, Watchdog(folder, config.stall_after, config.stall_action):
            run_dir.describe(folder, config, device)
            _logger.info("%s", state.execution_summary())
            trainer = Trainer(state, domains, folder, shown, started, callback)
            finished = _run(trainer, stop)
            measures = trainer.finish(pairs) if finished else {}
    return TrainingResult(folder, state.iteration, finished, measures, stop.signal)


def _with_absolute_paths(config: Config) -> Config:
    """Return a configuration whose files are found from any working directory, on resume too."""
    names = (*configuration.DATA_KEYS, "vgg_model_path")
    given = {name: getattr(config, name) for name in names if getattr(config, name)}
    return replace(
        config, **{name: os.path.abspath(os.path.expanduser(path)) for name, path in given.items()}
    )


def _refuse_finished(iteration: int, config: Config, run: Run) -> None:
    if iteration > config.max_iter:
        raise ConfigError(
            f"max_iter={config.max_iter} is below iteration {iteration}, which {run.source} has "
            "reached; raise it (--max-iter), or start another run"
        )
    if iteration == config.max_iter:
        _logger.warning(
            "%s has reached max_iter=%d: nothing is trained; train on with --max-iter N",
            *(run.source, config.max_iter),
        )


def checked_files(config: Config) -> Domains:
    """Find and check the images; raises DataError that lists the bad ones.

    Built-in images are drawn if they do not exist yet.
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
    """Return the number of images of each split, after checking them as training does.

    Of built-in images only the size is checked: they are drawn when training starts.
    """
    if config.data.builtin != "none":
        height, width = builtin.size(config.data.builtin)
        validation.require_dali()
        for split in discovery.SPLITS:
            validation.check_channels(_rule(config, split).reading.channels)
            if reason := _rule(config, split).problem(height, width):
                raise UserError(
                    f"the drawn images of data.builtin={config.data.builtin} are {reason}"
                )
        return builtin.DEMO_COUNTS
    checked = checked_files(config)
    return {split: len(getattr(checked, split)) for split in discovery.SPLITS}


def _run(trainer: Trainer, stop: Stop) -> bool:
    """Run the loop; adds the remedy to errors of divergence and memory."""
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
    return SizeRule(domain.new_size, config.crop, reading_of(config, domain.name))
