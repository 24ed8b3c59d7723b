"""Reading of regular files only: a named pipe or a device would block for ever or never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_PART = 2**20  # bytes of one read


def read(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: as `check`, or the file cannot be read; with the reason and the path.
        MemoryError: there is too little memory.
    """
    # O_NONBLOCK: opening a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        size = _check(os.fstat(descriptor), path, most)
    except OSError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb", buffering=0) as file:
        parts, length = [], 0
        while part := file.read(min(max(size + 1 - length, _PART), 64 * _PART)):
            parts.append(part)
            length += len(part)
            if length > most:  # it has grown
                raise OSError(errno.EFBIG, f"larger than the limit of {most:,} bytes", str(path))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check(path: Path, most: int | None = None) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        OSError: it does not exist, is no regular file, or is larger than `most` bytes.
    """
    status = os.stat(path)
    _check(status, path, most)
    return status


def _check(status: os.stat_result, path: Path, most: int | None) -> int:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "of another kind")
        raise OSError(errno.EINVAL, f"not a regular file but {what}", str(path))
    if most is not None and status.st_size > most:
        text = f"{status.st_size:,} bytes, more than the limit of {most:,}"
        raise OSError(errno.EFBIG, text, str(path))
    return status.st_size
