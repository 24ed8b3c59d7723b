"""The one writer of files: whole or not at all; and reading of checkpoints without running code."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from fastunit.common import regular
from fastunit.common.errors import CheckpointError, StorageError

_TEMPORARY = re.compile(r"\.fastunit-(\d+)-\d+\.tmp(\.\w{1,16})?")
_SUFFIX = re.compile(r"\.\w{1,16}")
_COUNT = itertools.count()
# The digest is the comment of the zip file, after the two bytes of the comment's length.
_SEAL = b"fastunit sha256 "
_SEALED = re.compile(_SEAL + rb"([0-9a-f]{64})")
_COMMENT = len(_SEAL) + 64
_PART = 2**22  # bytes
_TAIL = 22 + 2**16  # bytes of a zip file's last record, with the longest comment
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` at the end; creates the folder.

    `path` is always either the old file or the complete new one: the content is synced to disk
    before the rename, the folder after it. On an exception `path` is unchanged and the temporary
    file removed. The temporary name is short, whatever the length of the name, and keeps the
    suffix, for writers that choose a format by it.

    Raises:
        OSError: the file cannot be written; it has `path` as its file name.
        FileExistsError: `path` is a folder, device or pipe.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file; choose another path")
    suffix = path.suffix if _SUFFIX.fullmatch(path.suffix) else ""
    temporary = path.with_name(f".fastunit-{os.getpid()}-{next(_COUNT)}.tmp{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is not None and str(error.filename or temporary) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files that killed processes have left in a folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_left(path.name):
                with suppress(OSError):
                    path.unlink()


def is_left(name: str) -> bool:
    """Return whether a file's name is that of a temporary file that a killed process has left."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and not _alive(int(match[1]))


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file atomically; what cannot be encoded is written as an escape."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file atomically."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def save(value: Any, path: Path) -> None:
    """Write tensors and plain values atomically, for `read`, with a digest of the whole file.

    Raises:
        StorageError: the file cannot be written; the message has the path, the reason and, if the
            disk is full, how much is needed.
        FileExistsError: `path` is a folder, device or pipe.
    """
    import torch

    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            recorder = _Recorder(file)
            try:
                torch.save(value, cast("IO[bytes]", recorder))
            except Exception:
                if recorder.error is not None:  # PyTorch raises its own error over it
                    raise recorder.error from None
                raise
            recorder.seal()
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(_not_written(path, error, value)) from error


class _Recorder:
    """A file for torch.save: digests what is written, and keeps the disk's error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._last = file, hashlib.sha256(), b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all but the last two bytes, which may be the length of the zip's comment."""
        view = memoryview(data).cast("B")
        if len(view) < 2:
            view = memoryview(self._last + bytes(view))
            self._put(view[:-2])
        else:
            self._put(memoryview(self._last))
            self._put(view[:-2])
        self._last = bytes(view[-2:])
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def seal(self) -> None:
        """Write the digest as the zip file's comment; nothing may be written after it."""
        assert self._last == bytes(2), "torch.save has written a zip file with a comment"
        comment = _SEAL + self._hash.hexdigest().encode()
        self._file.write(struct.pack("<H", len(comment)) + comment)

    def _put(self, view: memoryview) -> None:
        try:
            self._file.write(view)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(view)


def _not_written(path: Path, error: OSError, value: Any) -> str:
    reason = f"cannot write {path}: {error.strerror or error}"
    if error.errno not in FULL:
        return reason
    need, free = tensor_bytes(value) / 1e6, ""
    with suppress(OSError):
        status = os.statvfs(path.parent)
        free = f", and {status.f_bavail * status.f_frsize / 1e6:.1f} MB are free there"
    return f"{reason}; it needs about {need:.1f} MB{free}"


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in dictionaries, lists and tuples."""
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(tensor_bytes, value))
    return getattr(value, "nbytes", 0)


def read(path: Path) -> Any:
    """Load what `save` wrote, onto the CPU, with ``weights_only=True``: a file cannot run code.

    The digest is compared first. Zip files of other programs, which have none, must have right
    CRCs and entries as torch.save writes them.

    Raises:
        CheckpointError: the file is missing, damaged or not such a file.
    """
    import torch

    try:
        regular.check(path)
        if not sealed(path) and zipfile.is_zipfile(path):
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except Exception as error:  # on damaged files the unpickler raises many kinds of exceptions
        raise CheckpointError(
            f"checkpoint {path} is damaged or unreadable: {_unreadable(error)}"
        ) from error


def _unreadable(error: Exception) -> str:
    """Return the reason of torch.load's error, without its advice to let files run code."""
    said = str(error).strip()
    if found := re.search(r"GLOBAL (\S+)", said):
        return (
            f"it contains {found[1]}; only tensors, numbers and texts are read, which run no code"
        )
    if isinstance(error, RuntimeError) and said:
        return said.splitlines()[0]
    return "torch.save did not write it"


def sealed(path: Path) -> bool:
    """Return whether a file ends with its digest, as `save` writes it.

    Raises:
        CheckpointError: the file is damaged: the digest is not that of its content.
    """
    length = struct.pack("<H", _COMMENT)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = size - _COMMENT - 2
        if content < 22:
            return False
        file.seek(content - 20)
        tail = file.read()
        match = _SEALED.fullmatch(tail[22:])
        if tail[20:22] != length or not match:
            # A flipped bit leaves one of them: the record before the comment, or the comment.
            if tail[:4] == b"PK\5\6" and (tail[20:22] == length or tail[22:26] == _SEAL[:4]):
                raise CheckpointError(f"checkpoint {path} is damaged: its digest is unreadable")
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while content:
            part = file.read(min(content, _PART))
            if not part:
                break
            digest.update(part)
            content -= len(part)
    if digest.hexdigest().encode() != match[1]:
        raise CheckpointError(f"checkpoint {path} is damaged: its digest is another one")
    return True


def _check_archive(path: Path) -> None:
    """Refuse zip files that are cut off, have wrong CRCs, or entries of other kinds.

    torch.load ignores the former two.

    An entry with the attribute of a folder would be read as uninitialised memory.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if struct.unpack_from("<H", tail, end + 20)[0] != len(tail) - end - 22:
        raise CheckpointError(f"checkpoint {path} is damaged: it is cut off, or longer than it was")
    with zipfile.ZipFile(path) as archive:
        names = set()
        for entry in archive.infolist():
            plain = entry.compress_type == zipfile.ZIP_STORED
            plain = plain and entry.file_size == entry.compress_size
            if not plain or entry.is_dir() or entry.external_attr & 0x10 or entry.flag_bits & 1:
                raise CheckpointError(f"checkpoint {path}: its entry {entry.filename} is damaged")
            if entry.filename in names:
                raise CheckpointError(f"checkpoint {path} has two entries {entry.filename}")
            names.add(entry.filename)
        if broken := archive.testzip():
            raise CheckpointError(f"checkpoint {path} is damaged: bad CRC of {broken}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_dir() -> Path:
    """Return the folder for generated data and indexes; it may not exist yet.

    ``$FASTUNIT_CACHE``, else ``$XDG_CACHE_HOME/fastunit``, else ``~/.cache/fastunit``, or for a
    user without a home ``fastunit-UID`` in the folder for temporary files.
    """
    if explicit := os.environ.get("FASTUNIT_CACHE"):
        return Path(explicit)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fastunit"
    try:
        return Path.home() / ".cache" / "fastunit"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"fastunit-{os.getuid()}"
