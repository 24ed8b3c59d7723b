"""Which folder a run writes to, and which checkpoint it continues."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastunit import checkpoint
from fastunit.errors import CheckpointError, ConfigError
from fastunit.session import Session

ROOT = Path("runs")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run's folder and what it continues, if anything.

    `state` is a checkpoint of ours; `weights` a gen_*.pt of the release; `source` names either.
    """

    folder: Path
    source: str = ""
    state: dict[str, Any] | None = None
    weights: Path | None = None

    def restore(self, session: Session) -> None:
        """Bring a fresh session to where the run continues."""
        if self.state is not None:
            session.restore(self.state, self.source)
        elif self.weights is not None:
            session.restore_release(self.weights)
        if self.source:
            _logger.info("continuing %s at iteration %d", self.source, session.iteration)


def find_run(output: str | None, resume: str | None, config: str | None) -> Run:
    """Return the run that the command line's --output, --resume and --config ask for.

    Without --output the folder is runs/NAME, NAME being the configuration's; a fresh run takes
    the first of NAME, NAME-2, ... that is free, `--resume` the last that has a checkpoint.
    Nothing is written. Raises ConfigError for a folder that a fresh run would overwrite, and
    CheckpointError when there is nothing to continue.
    """
    name = Path(config).stem if config else "demo"
    if resume is None:
        return Run(_fresh(Path(output)) if output else _free(name))
    if resume == "auto":
        folder = Path(output) if output else _latest(name)
        return _continue_folder(folder) or Run(folder)
    path = Path(resume)
    if path.is_dir():
        run = _continue_folder(path)
        if run is None:
            raise CheckpointError(f"--resume {path}: this folder has no checkpoints/XXXXXXXX.pt")
    else:
        run = _continue_file(path, name)
    return replace(run, folder=_fresh_or_same(Path(output), run.folder)) if output else run


def _continue_folder(folder: Path) -> Run | None:
    state = checkpoint.load_newest(folder)
    if state is None:
        return None
    return Run(folder, str(checkpoint.path_of(folder, state["iteration"])), state)


def _continue_file(path: Path, name: str) -> Run:
    if re.fullmatch(r"gen_\d{8}\.pt", path.name):
        return Run(_free(name), str(path), weights=path)
    state = checkpoint.load(path)
    in_run = path.parent.name == checkpoint.FOLDER
    return Run(path.parent.parent if in_run else _free(name), str(path), state)


def _fresh(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"--output {folder} is not empty; continue that run with --resume, or give another "
            "folder"
        )
    return folder


def _fresh_or_same(folder: Path, continued: Path) -> Path:
    same = folder.exists() and continued.exists() and folder.samefile(continued)
    return folder if same else _fresh(folder)


def _numbered(name: str) -> dict[int, Path]:
    """Return the folders runs/NAME (number 1), runs/NAME-2, ... that exist."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    matches = ((path, pattern.fullmatch(path.name)) for path in ROOT.glob(f"{name}*"))
    return {int(match[1] or 1): path for path, match in matches if match}


def _free(name: str) -> Path:
    taken = _numbered(name)
    number = max(taken, default=0) + 1
    return ROOT / (name if number == 1 else f"{name}-{number}")


def _latest(name: str) -> Path:
    with_checkpoints = [n for n, path in _numbered(name).items() if checkpoint.iterations(path)]
    return _numbered(name)[max(with_checkpoints)] if with_checkpoints else _free(name)
