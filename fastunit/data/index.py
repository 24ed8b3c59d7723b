"""The index of checked images: what is known of each good file, as long as it does not change.

One SQLite file in the cache folder. Results are written as they come and committed once a minute,
so that a check that is ended goes on where it was; files are looked up by parts, so that memory
does not grow with their number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastunit.data.decoding import Decoded
from fastunit.data.value_ranges import Values

PART = 10_000  # files looked up at a time
_EVERY = 60.0  # seconds between commits
_STATE = struct.Struct("<qqqQQ")
_TABLE = """CREATE TABLE IF NOT EXISTS images (
    mode TEXT, folder BLOB, name BLOB, state BLOB, height INTEGER, width INTEGER, digest BLOB,
    low TEXT, PRIMARY KEY (mode, folder, name)) WITHOUT ROWID"""
_QUERY = (
    "SELECT name, state, height, width, digest, low FROM images "
    "WHERE mode = ? AND folder = ? AND name BETWEEN ? AND ?"
)
_logger = logging.getLogger(__name__)


class Index:
    """An open index; without a usable file it is empty and keeps nothing, with a warning.

    `version` is what results depend on apart from the files: with another one all are forgotten.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._committed = path, time.monotonic()
        self._database: sqlite3.Connection | None = None
        self._folders: dict[str, bytes] = {}  # real paths
        number = int.from_bytes(hashlib.sha256(version.encode()).digest()[:4], "big") >> 1
        for attempt in (1, 2):
            try:
                self._database = self._open(number)
                return
            except sqlite3.DatabaseError as error:  # damaged: begin anew
                self.close()
                if isinstance(error, sqlite3.OperationalError) or attempt == 2:
                    return self._lose(error)
                with suppress(OSError):
                    path.unlink()
            except OSError as error:
                return self._lose(error)

    def _open(self, number: int) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=10)
        self._database = database
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found != number:
            database.execute("DROP TABLE IF EXISTS images")
            database.execute(f"PRAGMA user_version = {number}")
        database.execute(_TABLE)
        database.execute("SELECT * FROM images LIMIT 1").fetchall()
        database.commit()
        return database

    def find(self, mode: str, files: Sequence[str]) -> list[Decoded | None]:
        """Return what is known of each file, read as `mode` says; None if nothing or it changed."""
        places = []
        parts: dict[str, list[bytes]] = {}
        for file in files:
            folder, name = _place(file)
            places.append((folder, name))
            parts.setdefault(folder, []).append(name)
        known: dict[str, dict[bytes, tuple]] = {}
        for folder, names in parts.items():
            where = (mode, self._folder(folder), min(names), max(names))
            known[folder] = {row[0]: row for row in self._rows(_QUERY, where)}
        return [
            _decoded(known[folder].get(name), file)
            for file, (folder, name) in zip(files, places, strict=True)
        ]

    def _folder(self, folder: str) -> bytes:
        if folder not in self._folders:
            self._folders[folder] = os.fsencode(os.path.realpath(folder))
        return self._folders[folder]

    def _rows(self, query: str, values: tuple) -> list[tuple]:
        if self._database is None:
            return []
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._lose(error)
            return []

    def add(self, mode: str, file: str, state: bytes, found: Decoded) -> None:
        """Record a good file, with the `state_of` it before it was read."""
        if self._database is None or not state:
            return
        folder, name = _place(file)
        values = json.dumps(found.values) if found.values else None
        row = (mode, self._folder(folder), name, state, found.height, found.width, found.digest)
        row = (*row, values)
        try:
            self._database.execute("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?,?)", row)
            if time.monotonic() - self._committed > _EVERY:
                self._commit()
        except sqlite3.Error as error:
            self._lose(error)

    def close(self) -> None:
        """Commit and close."""
        if self._database is None:
            return
        try:
            self._commit()
            self._database.close()
        except sqlite3.Error as error:
            self._lose(error)
        self._database = None

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _commit(self) -> None:
        assert self._database is not None
        self._database.commit()
        self._committed = time.monotonic()

    def _lose(self, error: Exception) -> None:
        text = "the next run checks images again: cannot write %s: %s"
        _logger.warning(text, self._path, error)
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
        self._database = None


def state_of(file: str) -> bytes:
    """Return what changes when a file does; empty if it has no status.

    It has the status's size, times, device and inode: the time of change (ctime) cannot be set, so
    that a file that was replaced has another state even with the old size and time.
    """
    try:
        status = os.stat(file)
    except OSError:
        return b""
    return _STATE.pack(
        status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino
    )


def _place(file: str) -> tuple[str, bytes]:
    """Return a path's folder, with the separator, and the name."""
    cut = file.rfind(os.sep) + 1
    return file[:cut], os.fsencode(file[cut:])


def _decoded(row: tuple | None, file: str) -> Decoded | None:
    if row is None or row[1] != state_of(file):
        return None
    _, _, height, width, digest, values = row
    return Decoded(height, width, digest, Values(*json.loads(values)) if values else None)
