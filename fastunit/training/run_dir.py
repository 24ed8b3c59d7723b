"""The folder that a run writes to, its description, and the checkpoint that it continues."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from fastunit import config
from fastunit.common import environment, files
from fastunit.common.errors import CheckpointError, ConfigError, UserError
from fastunit.training import checkpoint

ROOT = Path("runs")
ADAPT = "adapt-"  # how names of runs begin that only the digits' adaptation continues
CONFIG = "config.yaml"
_LOCK = ".lock"
_RELEASE = re.compile(r"gen_\d{8}\.pt")
_logger = logging.getLogger(__name__)


class Resumable(Protocol):
    """What can be brought to where a run was left."""

    @property
    def iteration(self) -> int: ...
    def restore(self, state: dict[str, Any], source: str) -> None: ...
    def restore_release(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Run:
    """A run's folder and the checkpoint that it continues, if any.

    `state` is the content of a fastunit checkpoint, `weights` the path of a release's gen_*.pt,
    `source` the name of either for messages. With `numbered` the folder was chosen by fastunit,
    which may choose another number. With `restart` the folder's run was ended before its first
    checkpoint, and begins again. `seen` are the iterations of the folder's checkpoints when it was
    chosen.
    """

    folder: Path
    source: str = ""
    state: dict[str, Any] | None = None
    weights: Path | None = None
    numbered: bool = False
    restart: bool = False
    seen: tuple[int, ...] = ()

    @property
    def start(self) -> str:
        """How the run starts, for messages."""
        if self.restart:
            return "starts again: it was ended before its first checkpoint"
        return f"continues {self.source}" if self.source else "starts a new run"

    def restore(self, train_state: Resumable) -> None:
        """Restore a new train state from the checkpoint that the run continues, if any."""
        if self.state is not None:
            train_state.restore(self.state, self.source)
        elif self.weights is not None:
            train_state.restore_release(self.weights)
        if self.source:
            _logger.info("continuing %s at iteration %d", self.source, train_state.iteration)

    def values(
        self, path: str | None, read: Callable[[Mapping[str, Any]], Any] = config.from_dict
    ) -> dict[str, Any]:
        """Return configuration values: from the file at `path`, else from the checkpoint.

        `read` builds the settings of what is trained from the values in a checkpoint.
        """
        if path is None and self.state is not None:
            return config.to_dict(checkpoint.stored_config(self.state, self.source, read))
        if path is None and self.weights is not None:
            return config.to_dict(checkpoint.config_beside(self.weights))
        if path is None and self.restart:
            return config.read_yaml(self.folder / CONFIG)
        return config.read_yaml(path)

    def check(self) -> None:
        """Raise UserError if another process is training in the folder; writes nothing."""
        if (self.folder / _LOCK).is_file():
            with open(self.folder / _LOCK) as lock:
                _lock(lock, self.folder)

    @contextmanager
    def claim(self) -> Iterator[Path]:
        """Create the folder, and lock it against other processes inside the block.

        Raises:
            UserError: another process is training there.
        """
        folder = self.folder
        while self.numbered:
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:  # another run has just created it
                folder = _free(re.sub(r"-\d+$", "", folder.name))
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / _LOCK, "w") as lock:
            _lock(lock, folder)
            # Only now nobody else writes here: another run may have come and gone since `find_run`.
            if tuple(checkpoint.iterations(folder)) != self.seen:
                raise UserError(
                    f"another process has trained in {folder} meanwhile; continue its run "
                    f"(--resume {folder}), or give another folder"
                )
            checkpoint.clean(folder)
            yield folder


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process is training in {folder}") from error


def describe(folder: Path, settings: Any, device: torch.device) -> None:
    """Write what a run depends on: config.yaml, of a settings' dataclass, and environment.json."""
    files.write_text(config.dump_yaml(settings), folder / CONFIG)
    files.write_json(
        {"seed": settings.seed} | environment.describe(device), folder / "environment.json"
    )
    _logger.info("training on %s; everything goes to %s/", environment.device_name(device), folder)


def find_run(output: str | None, resume: str | None, name: str | None) -> Run:
    """Return the run for the given output folder and resume option. Nothing is written.

    A folder of a run that was ended before its first checkpoint is resumed from the beginning.

    Args:
        output: the folder; None: runs/NAME. A new run takes the first unused one of NAME, NAME-2,
            ...
        resume: None starts a new run. "auto" continues the newest checkpoint of `output`, or of
            NAME, NAME-2, ..., or if `name` is None of any folder in runs/ but the digits'; without
            one it starts a new run. A path continues that run's folder, checkpoint or release's
            gen_*.pt.
        name: NAME; None: the name of the run that the gen_*.pt lies in, else demo.

    Raises:
        ConfigError: files in a folder would be overwritten.
        CheckpointError: there is nothing to continue.
    """
    run = _find(output, resume, name)
    _check_writable(run.folder)
    return replace(run, seen=tuple(checkpoint.iterations(run.folder)))


def _find(output: str | None, resume: str | None, name: str | None) -> Run:
    base = name or _run_of(resume) or "demo"
    fresh = Run(_fresh(Path(output))) if output and not resume else Run(_free(base), numbered=True)
    if resume is None:
        return fresh
    if resume == "auto":
        folder = Path(output) if output else _latest(name)
        run = folder and _continue_folder(folder)
        if not run:
            _logger.info("nothing to continue in %s: starting a new run", folder or f"{ROOT}/")
        return run or (Run(Path(output)) if output else fresh)
    run = _continue_path(Path(resume), fresh)
    if output is None or _same(Path(output), run.folder):
        _refuse_to_rewind(run)
        return run
    return replace(run, folder=_fresh(Path(output)), numbered=False)


def _continue_folder(folder: Path) -> Run | None:
    state = checkpoint.load_newest(folder)
    if state is None:
        return Run(folder, restart=True) if (folder / CONFIG).is_file() else None
    return Run(folder, str(checkpoint.path_of(folder, state["iteration"])), state)


def _continue_path(path: Path, fresh: Run) -> Run:
    if path.is_dir():
        run = _continue_folder(path)
        if run is None:
            raise CheckpointError(f"nothing to resume: {path} has no checkpoints/XXXXXXXX.pt")
        return run
    if _RELEASE.fullmatch(path.name):
        return replace(fresh, source=str(path), weights=path)
    state = checkpoint.load(path)
    if path.parent.name == checkpoint.FOLDER:
        return Run(path.parent.parent, str(path), state)
    return replace(fresh, source=str(path), state=state)


def _run_of(resume: str | None) -> str | None:
    """Return the NAME of the run that a release's gen_*.pt lies in, if any."""
    if resume is None or not _RELEASE.fullmatch(Path(resume).name):
        return None
    folder = checkpoint.run_of(Path(resume))
    return folder and re.sub(r"-\d+$", "", folder.resolve().name)


def _refuse_to_rewind(run: Run) -> None:
    """Raise ConfigError if the folder has later checkpoints: resuming would mix two runs."""
    if run.state is None:
        return
    newest = checkpoint.load_newest(run.folder)
    if newest is not None and newest["iteration"] > run.state["iteration"]:
        raise ConfigError(
            f"{run.folder} has later checkpoints than {run.source} (up to iteration "
            f"{newest['iteration']}); give a new folder as output (--output), or delete them first"
        )


def _fresh(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; give a folder")
    left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if CONFIG in left and not checkpoint.iterations(folder):
        raise ConfigError(
            f"output {folder} holds a run that was ended before its first checkpoint; start it "
            f"again (--resume {folder}), or give another folder"
        )
    if any(name != _LOCK and not files.is_left(name) for name in left):
        raise ConfigError(
            f"output {folder} is not empty; continue that run (--resume), or give another folder"
        )
    return folder


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"output {folder} cannot be made: {existing} is not a writable folder")


def _same(folder: Path, other: Path) -> bool:
    return folder.exists() and other.exists() and folder.samefile(other)


def _numbered(name: str) -> dict[int, Path]:
    """Return the folders runs/NAME (number 1), runs/NAME-2, ... that exist."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    folders = ROOT.iterdir() if ROOT.is_dir() else ()
    matches = ((path, pattern.fullmatch(path.name)) for path in folders)
    return {int(match[1] or 1): path for path, match in matches if match}


def _free(name: str) -> Path:
    number = max(_numbered(name), default=0) + 1
    return ROOT / (name if number == 1 else f"{name}-{number}")


def _latest(name: str | None) -> Path | None:
    """Return the folder with the newest checkpoint, of NAME, NAME-2, ..., or of all for None."""
    if name is not None:
        folders = list(_numbered(name).values())
    else:
        folders = list(ROOT.iterdir()) if ROOT.is_dir() else []
        folders = [folder for folder in folders if not folder.name.startswith(ADAPT)]
    written = {
        checkpoint.path_of(folder, found[-1]).stat().st_mtime_ns: folder
        for folder in folders
        if (found := checkpoint.iterations(folder))
    }
    return written[max(written)] if written else None
