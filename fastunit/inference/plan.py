"""Which files are translated, and where the translations go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastunit.common.errors import DataError
from fastunit.data.discovery import EXTENSIONS, image_files
from fastunit.inference.video import VIDEOS


@dataclass(frozen=True)
class Job:
    """One image or video to translate: the input file, and a file for each style."""

    source: Path
    targets: tuple[Path, ...]

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return _is_video(self.source)


def plan(
    source: Path,
    output: Path,
    extension: str | None = None,
    *,
    styles: int = 1,
    reference: Path | None = None,
) -> list[Job]:
    """Return the images to translate and their output paths; no output overwrites an input.

    A folder's tree and names are kept under `output`. A file goes into `output` under its own
    name if `output` is a folder, else to the path `output`, in the format of its extension. With
    `extension`, such as ".png", names of images in folders get that one in place of their own. With
    several `styles` each name gets the style's number: day.png becomes day-1.png, day-2.png.
    `reference`, the image whose style is taken, is an input too.

    Raises:
        DataError: there is no input, the output's extension is not an image format's, or an
            output would replace an input, lie in the input folder or be that of two inputs.
    """
    if os.path.isdir(source):
        jobs = _folder_jobs(source, output, extension, styles)
    elif os.path.isfile(source):
        jobs = [_file_job(source, output, extension, styles)]
    else:
        raise DataError(f"INPUT {source} is neither a file nor a folder")
    _protect_inputs(jobs, reference)
    return jobs


def _folder_jobs(folder: Path, output: Path, extension: str | None, styles: int) -> list[Job]:
    if os.path.lexists(output) and not os.path.isdir(output):
        raise DataError(f"OUTPUT {output} is a file, but INPUT {folder} is a folder")
    jobs = [
        Job(file, _numbered(output / _renamed(file.relative_to(folder), extension), styles))
        for file in image_files(folder, (*EXTENSIONS, *VIDEOS))
    ]
    sources: dict[Path, Path] = {}
    for job, target in _every(jobs):
        other = sources.setdefault(target, job.source)
        if other != job.source:
            raise DataError(
                f"{other} and {job.source} would both become {target}; rename one, or leave "
                "out --format"
            )
    root = os.path.realpath(folder)
    for target in {target.parent for _, target in _every(jobs)}:
        if Path(os.path.realpath(target)).is_relative_to(root):
            raise DataError(
                f"the translations in {target} would stand among the inputs in {folder}; "
                "choose an OUTPUT outside of it"
            )
    return jobs


def _file_job(file: Path, output: Path, extension: str | None, styles: int) -> Job:
    if not os.path.isdir(output):
        target = output
        if extension and not _is_video(file) and target.suffix.lower() != extension:
            raise DataError(f"OUTPUT {output} must end in {extension}, as --format says")
    else:
        target = output / _renamed(Path(file.name), extension)
    known, kind = (VIDEOS, "a video") if _is_video(file) else (EXTENSIONS, "an image")
    if target.suffix.lower() not in known:
        raise DataError(
            f"cannot tell {kind} format from the name of {target}: it must be an existing "
            f"folder or end in one of {' '.join(known)}"
        )
    return Job(file, _numbered(target, styles))


def _renamed(path: Path, extension: str | None) -> Path:
    return path.with_suffix(extension) if extension and not _is_video(path) else path


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _numbered(path: Path, styles: int) -> tuple[Path, ...]:
    if styles == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, styles + 1))


def _every(jobs: Sequence[Job]) -> Iterator[tuple[Job, Path]]:
    """Yield each output path with its job."""
    return ((job, target) for job in jobs for target in job.targets)


def _protect_inputs(jobs: Sequence[Job], reference: Path | None) -> None:
    """Raise DataError if an output is one of the inputs, under any name or through a link."""
    files = [job.source for job in jobs] + ([] if reference is None else [reference])
    inputs = {identity: file for file in files for identity in _identities(file)}
    for _, target in _every(jobs):
        for identity in _identities(target):
            if identity in inputs:
                raise DataError(
                    f"the output {target} is the input {inputs[identity]}, and inputs are "
                    "never overwritten; choose another OUTPUT"
                )


def _identities(path: Path) -> set[tuple[int, int]]:
    """Return (device, inode) of a path and of its link's target; empty if it does not exist."""
    found = set()
    for look in (os.stat, os.lstat):
        with suppress(OSError):
            status = look(path)
            found.add((status.st_dev, status.st_ino))
    return found
