"""Checkpoints: one file with everything that a run needs to resume bit for bit.

Next to each `checkpoints/XXXXXXXX.pt` are gen_XXXXXXXX.pt and dis_XXXXXXXX.pt in the layout of the
networks' release (the trained weights, not their average).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from fastunit import config as configuration
from fastunit.common import files
from fastunit.common.errors import CheckpointError, ConfigError, TrainingDiverged
from fastunit.common.text import brief
from fastunit.config import CheckpointConfig, Config
from fastunit.models.domain_pair import DomainPair, TrainablePair
from fastunit.models.unit import networks
from fastunit.training import checkpoint_schema, release_files
from fastunit.training.ema import Average

FORMAT = 1
FOLDER = "checkpoints"
_NAME = re.compile(r"(\d{8})\.pt")
_PART = re.compile(r"(?:gen|dis)_(\d{8})\.pt")
_LOOKS = 5  # at a folder whose checkpoints a running training replaces
Settings = TypeVar("Settings")
_logger = logging.getLogger(__name__)


class Schedule(Protocol):
    """When checkpoints are written and which are kept, as a configuration says."""

    @property
    def snapshot_save_iter(self) -> int: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...


def path_of(run_dir: Path, iteration: int) -> Path:
    """Return the path of a run's checkpoint of an iteration."""
    return run_dir / FOLDER / f"{iteration:08d}.pt"


def iterations(run_dir: Path) -> list[int]:
    """Return the iterations of a run's checkpoints, oldest first."""
    folder = run_dir / FOLDER
    names = (_NAME.fullmatch(path.name) for path in folder.glob("*.pt"))
    return sorted(int(match[1]) for match in names if match)


def save(run_dir: Path, state: dict[str, Any], unit: TrainablePair | None = None) -> Path:
    """Write a checkpoint, and of `unit` the release's files; return the checkpoint's path.

    `state` has the key "iteration". Each file is written atomically, the checkpoint last.
    """
    path = path_of(run_dir, state["iteration"])
    if unit is not None:
        release_files.save_networks(unit, path.parent, state["iteration"])
    write(state, path)
    return path


def write(state: dict[str, Any], path: Path) -> None:
    """Write a state as a checkpoint, for `load`, atomically."""
    files.save({"format": FORMAT, "sealed": True, **state}, path)


def prune(run_dir: Path, schedule: Schedule, current: int) -> None:
    """Delete all but the newest `keep_last` and every `keep_every`-th checkpoint.

    The n-th checkpoint is the one of iteration n times `snapshot_save_iter`. Checkpoints after the
    iteration `current` (damaged ones, when the run was resumed from an earlier one) are kept.
    """
    kept = schedule.checkpoint.keep_every * schedule.snapshot_save_iter
    past = [iteration for iteration in iterations(run_dir) if iteration <= current]
    for iteration in past[: -schedule.checkpoint.keep_last]:
        if kept and iteration % kept == 0:
            continue
        path = path_of(run_dir, iteration)
        # The checkpoint last: a process killed in between leaves no orphans.
        for name in (f"gen_{path.name}", f"dis_{path.name}", path.name):
            try:
                path.with_name(name).unlink(missing_ok=True)
            except OSError as error:
                _logger.warning("cannot delete the old %s: %s", path, error.strerror)


def clean(run_dir: Path) -> None:
    """Delete what killed processes have left: temporary files, and parts of a newer checkpoint.

    gen_XXXXXXXX.pt and dis_XXXXXXXX.pt are written before their checkpoint.
    """
    for folder in (run_dir, run_dir / FOLDER, run_dir / "samples"):
        files.remove_temporaries(folder)
    newest = max(iterations(run_dir), default=-1)
    for path in (run_dir / FOLDER).glob("*.pt"):
        match = _PART.fullmatch(path.name)
        if match and newest >= 0 and int(match[1]) > newest:
            path.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Return the state that `save` wrote; raises CheckpointError for any other file."""
    state = files.read(path)
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of fastunit")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {brief(state['format'])}, this version of fastunit reads {FORMAT}"
        )
    if state.pop("sealed", False) and not files.sealed(path):
        raise CheckpointError(f"checkpoint {path} is damaged: it has lost its digest")
    checkpoint_schema.check_iteration(state, str(path))
    return state


def load_newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest readable checkpoint, or None if the run has none.

    Damaged checkpoints are skipped with a warning.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    for _ in range(_LOOKS):
        found = iterations(run_dir)
        for iteration in reversed(found):
            path = path_of(run_dir, iteration)
            try:
                return load(path)
            except CheckpointError as error:
                if not path.exists():  # a training that runs has replaced it
                    break
                _logger.warning("%s; trying the previous one", error)
        else:
            break
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {run_dir} can be read")
    return None


def load_generators(path: Path, config: Config | None = None) -> tuple[DomainPair, Config]:
    """Return the generators for translating, in evaluation mode on the CPU, and their config.

    Args:
        path: a checkpoint of fastunit (its averaged generators if it has them), a run's folder
            (its newest checkpoint), or a gen_*.pt in the release's layout.
        config: needed only for a gen_*.pt that does not lie in a run's folder.

    Raises:
        CheckpointError: the file is missing, damaged or of other networks, or there is no
            configuration.
    """
    if path.is_dir():
        state = load_newest(path)
        if state is None:
            raise CheckpointError(f"the folder {path} has no {FOLDER}/XXXXXXXX.pt")
        return _from_state(state, str(path))
    state = files.read(path)
    if isinstance(state, dict) and "format" in state:
        return _from_state(load(path), str(path))
    config = config or config_beside(path)
    unit = networks(config)
    release_files.load_networks(unit, path, expect="gen")
    return unit.generator_pair().eval(), config


def load_modules(modules: dict[str, nn.Module], state: dict[str, Any], source: str) -> None:
    """Load modules from a checkpoint's entries of the same names, strictly."""
    for name, module in modules.items():
        if not isinstance(state.get(name), dict):
            raise CheckpointError(f"{source} has no {name}")
        release_files.load_state(module, state[name], f"{name} of {source}")


def check_finite(networks: nn.Module, iteration: int) -> None:
    """Raise TrainingDiverged where a weight is not finite: bad weights are not kept."""
    for name, parameter in networks.named_parameters():
        if not parameter.isfinite().all():
            raise TrainingDiverged(f"{name} is not finite after iteration {iteration}")


def average_state(average: Average | None) -> dict[str, Any]:
    """Return a checkpoint's entries for an average of weights; None where there is none."""
    if average is None:
        return {"ema": None, "ema_updates": 0}
    return {"ema": average.module.state_dict(), "ema_updates": int(average.updates)}


def restore_average(
    average: Average | None, state: dict[str, Any], source: str, what: str = "generators"
) -> None:
    """Restore `average_state`, of `what`; where a checkpoint has none, an average starts anew."""
    if average is None:
        return
    if state["ema"] is None:
        _logger.warning("%s has no averaged %s: the average starts here", source, what)
        average.restart()
    else:
        load_modules({"ema": average.module}, state, source)
        average.updates.fill_(state["ema_updates"])


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the random generators that a run on `device` uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore `random_state`; a run moved from CPU to GPU or back draws different noise."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _from_state(state: dict[str, Any], source: str) -> tuple[DomainPair, Config]:
    config = stored_config(state, source)
    unit = networks(config)
    pair = unit.generator_pair()
    if state.get("ema") is not None:
        load_modules({"ema": pair}, state, source)
    else:
        load_modules({"unit": unit}, state, source)
    return pair.eval(), config


def stored_config(
    state: dict[str, Any],
    source: str,
    read: Callable[[Mapping[str, Any]], Settings] = configuration.from_dict,
) -> Settings:
    """Return the configuration stored in a checkpoint, as `read` builds it."""
    try:
        return read(state["config"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"the configuration in {source} cannot be used: {error}") from error


def run_of(path: Path) -> Path | None:
    """Return the run's folder that a gen_*.pt lies in: the one with a config.yaml."""
    folders = (path.parent, path.parent.parent)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def config_beside(path: Path) -> Config:
    """Return the configuration of the run that a gen_*.pt lies in."""
    if folder := run_of(path):
        return configuration.load(folder / "config.yaml")
    raise CheckpointError(
        f"{path} contains no configuration; give its YAML as config (--config), or put it in the "
        "same folder as config.yaml"
    )
