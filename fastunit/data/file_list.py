"""Lists of files that may be very long."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload


class Files(Sequence[Path]):
    """An immutable sequence of paths, kept as text: a million `Path`s take 0.5 GB and seconds.

    Equal to any sequence of the same paths. `names` are the paths as text.
    """

    __slots__ = ("names",)

    def __init__(self, files: Iterable[str | os.PathLike[str]]) -> None:
        self.names: tuple[str, ...]
        self.names = files.names if isinstance(files, Files) else tuple(os.fspath(f) for f in files)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> Path | Files:
        found = self.names[index]
        return Path(found) if isinstance(found, str) else Files(found)

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.names)

    def __add__(self, other: Iterable[str | os.PathLike[str]]) -> Files:
        return Files((*self.names, *Files(other).names))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Files):
            return self.names == other.names
        return isinstance(other, (tuple, list)) and self.names == Files(other).names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"Files({list(self.names)})"
