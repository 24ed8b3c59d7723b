"""A training run, from checking its files to its result."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fastunit import config as configuration
from fastunit.common import devices
from fastunit.common import progress as bars
from fastunit.common.errors import ConfigError, UserError
from fastunit.config import Config
from fastunit.data import builtin, dali, discovery, validation
from fastunit.data.discovery import Domains
from fastunit.data.image_io import reading_of
from fastunit.data.validation import SizeRule
from fastunit.evaluation import features
from fastunit.training import allocator, best, held_out, run_dir
from fastunit.training.determinism import deterministic
from fastunit.training.estimates import Batches, Estimate, estimate, noise
from fastunit.training.kernel_compilation import compile_kernels
from fastunit.training.loop import Callback
from fastunit.training.run_dir import Run, find_run
from fastunit.training.state import TrainState
from fastunit.training.stopping import Stop, stop_on_signals
from fastunit.training.streams import Stream
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
        finished: whether `max_iter` was reached or `patience` ended the run; False if it was
            stopped.
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
    loaders: tuple[Iterable[Any], Iterable[Any]] | None = None,
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
        loaders: an iterable of training batches for each domain, such as a torch DataLoader, in
            place of image files: `config` then names none. Batches are floating tensors
            [N, C, H, W] in [-1, 1], N = batch_size * accumulate, H and W those of the crop, or
            sequences that begin with one. At its end an iterable is started again. If it has
            state_dict and load_state_dict (as torchdata's StatefulDataLoader), its state is kept in
            checkpoints; else a resumed run starts it anew, with a warning. There is no held-out
            error.

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
    chosen = devices.choose(device)
    return train(config, run, chosen, callback=callback, progress=progress, loaders=loaders)


def train(
    config: Config,
    run: Run,
    device: torch.device,
    *,
    callback: Callback | None = None,
    progress: bool = True,
    signals: bool = False,
    loaders: tuple[Iterable[Any], Iterable[Any]] | None = None,
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
        streams = _streams(config, loaders, device)
        domains = Domains((), (), (), ()) if streams else checked_files(config)
        domains, held = best.split(domains, config)
        pairs = held_out.find_pairs(domains, config)
        state = TrainState(config, device, streams)
        run.restore(state)
        _refuse_finished(state.iteration, config, run)
        if streams:
            x_a, x_b = (stream.peek()[: config.display_size] for stream in streams)
            count = min(len(x_a), len(x_b))
            shown = x_a[:count], x_b[:count]
        else:
            shown = held_out.shown_images(domains, config, device)
        with run.claim() as folder, Watchdog(folder, config.stall_after, config.stall_action):
            run_dir.describe(folder, config, device)
            _logger.info("%s", state.execution_summary())
            if device.type == "cuda":
                compile_kernels(config, device)
            keeper = None if held is None else best.Best(config, held, device)
            trainer = Trainer(state, domains, folder, shown, started, callback, keeper)
            with _memory_errors():
                finished = trainer.run(stop)
            measures = trainer.finish(pairs) if finished else {}
    return TrainingResult(folder, state.iteration, finished, measures, stop.signal)


def _streams(
    config: Config, loaders: tuple[Iterable[Any], Iterable[Any]] | None, device: torch.device
) -> tuple[Stream, Stream] | None:
    if loaders is None:
        return None
    if config.evaluate_every:
        raise ConfigError("evaluate_every holds out image files; set it to 0 with loaders")
    given = config.given_data() + (["data.builtin"] if config.data.builtin != "none" else [])
    if given:
        raise ConfigError(f"loaders and {', '.join(given)} are both given; leave out one of them")
    if not isinstance(loaders, (tuple, list)) or len(loaders) != 2:
        raise ConfigError("loaders must be two iterables, one for each domain: loaders=(a, b)")
    a, b = loaders
    return Stream(a, "a", config, device), Stream(b, "b", config, device)


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

    Built-in images are drawn if they do not exist yet. Warns if DALI is missing.
    """
    dali.announce(config.data.loader)
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


@dataclass(frozen=True)
class Plan:
    """What `dry_run` found: images of each split, expected time and disk space."""

    images: dict[str, int]
    estimate: Estimate


def dry_run(config: Config, run: Run, device: torch.device) -> Plan:
    """Make every check that `train` makes, and a few steps; nothing is written.

    Of built-in images only the size is checked: they are drawn when training starts.

    Raises:
        The errors of `train`.
    """
    with devices.current(device):
        domains = None
        if config.data.builtin != "none":
            _check_builtin(config)
            images = builtin.DEMO_COUNTS
        else:
            domains = checked_files(config)
            images = {split: len(getattr(domains, split)) for split in discovery.SPLITS}
            held_out.find_pairs(domains, config)
            domains, held = best.split(domains, config)
            if held is not None:
                features.load("efficientnet", None, device)
        state = TrainState(config, device)
        run.restore(state)
        _refuse_finished(state.iteration, config, run)
        batches = noise(config, device)
        if domains is not None:
            held_out.shown_images(domains, config, device)
            batches = _batches(state, domains)
        run.check()
        with _memory_errors():
            return Plan(images, estimate(state, batches))


def _batches(state: TrainState, domains: Domains) -> Batches:
    loader_a, loader_b = state.loaders(domains)
    return lambda: (next(loader_a), next(loader_b))


def _check_builtin(config: Config) -> None:
    dali.announce(config.data.loader)
    height, width = builtin.size(config.data.builtin)
    dali.require(config.data.loader)
    for split in discovery.SPLITS:
        if (channels := _rule(config, split).reading.channels) not in (1, 3):
            raise ConfigError(
                f"input_dim_{split[-1]} is {channels}; data.builtin={config.data.builtin} draws "
                "images of 1 (grayscale) or 3 (RGB) channels"
            )
        if reason := _rule(config, split).problem(height, width):
            raise UserError(f"the drawn images of data.builtin={config.data.builtin} are {reason}")


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn an error of too little memory on a GPU into one with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is full ({error}); set checkpoint_activations=true, or lower "
            "batch_size, crop_image_height or crop_image_width (--dry-run shows the expected "
            "memory)"
        ) from error


def _rule(config: Config, split: str) -> SizeRule:
    domain = config.domain(split[-1])
    return SizeRule(domain.new_size, config.crop, reading_of(config, domain.name))
