"""Decoding in expendable processes: damaged and hostile files cannot take this one down.

A process that dies, hangs or takes too much memory is that file's reason; the next file gets a new
process. Processes are kept for a few seconds, and end with this one.
"""

from __future__ import annotations

import atexit
import errno
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastunit.common.errors import DataError, ResourceError
from fastunit.data.image_io import Reading
from fastunit.data.image_worker import DIGEST
from fastunit.data.picture import Picture, Wanted
from fastunit.data.value_ranges import Values

_START = 120.0  # seconds that a process may take to start, on a busy machine with a slow disk
_STEP = 0.2  # seconds between looks whether the wait is still wanted
_MOST_BESIDE = 2**26  # bytes of a profile or of EXIF data
_LONGEST = 65536  # bytes of an answer without pixels


class Decoded(NamedTuple):
    """What is known of a good file: its decoded size, digest, and 16-bit values if it has them."""

    height: int
    width: int
    digest: bytes
    values: Values | None


def measure(file: Path, reading: Reading) -> Decoded:
    """Decode a file completely and return what is known of it.

    Raises:
        DataError: the file cannot be used; with the reason, without its name.
        ResourceError: no process to decode it can be started.
    """
    return _ask(file, reading, pixels=False)[0]


def decode(file: Path, reading: Reading) -> np.ndarray:
    """Return a file's pixels as training sees them, uint8 or float32 [H, W, channels].

    Raises:
        DataError: the file cannot be used; with the reason, without its name.
        ResourceError: no process to decode it can be started.
    """
    return _picture(*_ask(file, reading, pixels=True), reading.channels).pixels


def picture(file: Path, reading: Reading, wanted: Wanted) -> Picture:
    """Return a file's pixels and what is wanted beside them, as `picture.read` does.

    Raises:
        DataError: the file cannot be used; with the reason, without its name.
        ResourceError: no process to decode it can be started.
    """
    return _picture(*_ask(file, reading, pixels=True, wanted=wanted), reading.channels)


def _picture(decoded: Decoded, parts: list[bytes], channels: int) -> Picture:
    pixels, alpha, profile, exif = parts
    shape = decoded.height, decoded.width
    dtype = np.uint8 if len(pixels) == channels * math.prod(shape) else np.float32
    return Picture(
        np.frombuffer(pixels, dtype).reshape(*shape, channels),
        np.frombuffer(alpha, np.uint8).reshape(shape) if alpha else None,
        profile,
        exif,
    )


class _Lost(Exception):
    """A process has died, hangs, or gave no valid answer; the message is the file's reason."""


def _not_started(reason: str) -> str:
    """Return what to say of a process that the system refuses: no image is at fault."""
    found = f"the process that decodes images does not start: {reason}"
    if os.strerror(errno.EMFILE) in reason:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        found += f"; allow more than {most} (ulimit -n), or lower num_workers"
    elif os.strerror(errno.EAGAIN) in reason:
        found += "; allow more processes (ulimit -u), or lower num_workers"
    return found


class _Worker:
    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        changes = {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
        changes |= {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastunit.data.image_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | changes,
            start_new_session=True,  # Ctrl-C in a terminal is for this process alone
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._buffer = bytearray()
        self._ended, self._starved_before = False, 0.0

    def start(self) -> None:
        """Wait until it can decode; raises ResourceError if it never can."""
        assert self._process.stderr
        try:
            ready = self._line(time.monotonic() + _START) == b"ready"
        except _Lost:
            ready = False
        except TimeoutError as error:
            raise ResourceError(
                f"the process that decodes images has not started within {_START:g} s"
            ) from error
        if not ready:
            self.kill()
            said = self._process.stderr.read().decode(errors="replace").strip()
            last = said.splitlines()[-1] if said else "it said nothing"
            raise ResourceError(_not_started(last))

    def ask(
        self, request: bytes, seconds: float, channels: int
    ) -> tuple[Decoded | str, list[bytes]]:
        """Return what is known of a file, or why it cannot be used, and its parts if asked for."""
        end, self._starved_before = time.monotonic() + seconds, self._starved()
        try:
            os.write(self._in, request)
        except OSError as error:
            raise _Lost("") from error  # it had ended before
        found, lengths = _checked(self._line(end), channels)
        return found, [self._take(length, end) for length in lengths]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; one that a dead mount holds is left behind."""
        self._ended = True
        with suppress(OSError):
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                if pipe:
                    pipe.close()

    def _starved(self) -> float:
        """Return the seconds that the process has waited for a processor: no file's fault."""
        with suppress(OSError, ValueError, IndexError):
            file = Path(f"/proc/{self._process.pid}/schedstat")
            return int(file.read_text(encoding="ascii").split()[1]) / 1e9
        return 0.0

    def _line(self, end: float) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST:
                raise _Lost("the process that decoded it gave no valid answer")
            self._receive(end)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def _take(self, count: int, end: float) -> bytes:
        while len(self._buffer) < count:
            self._receive(end)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _receive(self, end: float) -> None:
        while not select.select([self._out], [], [], _STEP)[0]:
            if self._ended:
                raise _Lost("the check was ended")
            late = time.monotonic() - end
            if late > 0 and late > self._starved() - self._starved_before:
                raise TimeoutError
        data = os.read(self._out, 2**20)
        if not data:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            raise _Lost(_death(self._process.returncode))
        self._buffer += data


def _death(code: int | None) -> str:
    how = f"with exit code {code}"
    if code is not None and code < 0:
        with suppress(ValueError):
            how = f"by {signal.Signals(-code).name}"
    return f"damaged: decoding it ended the process that tried, {how}"


def _checked(line: bytes, wanted: int) -> tuple[Decoded | str, list[int]]:
    """Return an answer and its parts' lengths; a process that a file took over may say anything."""
    try:
        answer = json.loads(line)
        if "error" in answer:
            return str(answer["error"])[:1000], []
        height, width, channels = (int(side) for side in answer["shape"])
        digest = bytes.fromhex(answer["digest"])
        values = answer["values"] and Values(*(int(value) for value in answer["values"]))
        if min(height, width) < 1 or channels != wanted or len(digest) != DIGEST:
            raise ValueError
        lengths = [int(length) for length in answer["parts"]]
        if lengths:
            pixels, alpha, profile, exif = lengths
            area = height * width
            if pixels not in (area * channels, 4 * area * channels) or alpha not in (0, area):
                raise ValueError
            if min(profile, exif) < 0 or max(profile, exif) > _MOST_BESIDE:
                raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise _Lost("the process that decoded it gave no valid answer") from error
    return Decoded(height, width, digest, values), lengths


_idle: list[_Worker] = []
_busy: set[_Worker] = set()
_lock = threading.Lock()


def _ask(
    file: Path, reading: Reading, *, pixels: bool, wanted: Wanted | None = None
) -> tuple[Decoded, list[bytes]]:
    limits = reading.limits
    request = {
        "path": os.fsencode(file.absolute()).hex(),
        "channels": reading.channels,
        "range": reading.value_range,
        "key": reading.key,
        "limits": asdict(limits),
        "loader": reading.loader,
        "arrays": reading.arrays,
        "pixels": pixels,
        "wanted": wanted and asdict(wanted),
    }
    line = json.dumps(request).encode() + b"\n"
    for new in (False, True):  # idle processes may just have ended
        worker = _take_worker(new)
        try:
            found, data = worker.ask(line, limits.seconds, reading.channels)
        except TimeoutError as error:
            _discard(worker)
            raise DataError(
                f"reading it took more than data.max_seconds={limits.seconds:g}"
            ) from error
        except _Lost as error:
            _discard(worker)
            if str(error) or new:
                raise DataError(str(error) or "the process that decodes images ends") from error
            continue
        except BaseException:
            _discard(worker)
            raise
        with _lock:
            _busy.discard(worker)
            _idle.append(worker)
        if isinstance(found, str):
            raise DataError(found)
        if found.height * found.width > limits.pixels:
            limits.check_size(found.width, found.height)
        return found, data
    raise AssertionError


def _take_worker(new: bool) -> _Worker:
    """Return an idle process, if there is one and no `new` one is asked for."""
    with _lock:
        while _idle and not new:
            worker = _idle.pop()
            if worker.alive:
                _busy.add(worker)
                return worker
            worker.close()
    try:
        worker = _Worker()
    except OSError as error:
        raise ResourceError(_not_started(error.strerror or str(error))) from error
    with _lock:
        _busy.add(worker)  # before it has started, so that `stop` ends it too
    try:
        worker.start()
    except BaseException:
        _discard(worker)
        raise
    return worker


def _discard(worker: _Worker) -> None:
    with _lock:
        _busy.discard(worker)
    worker.close()


@atexit.register
def stop() -> None:
    """End all processes; files that they are decoding fail."""
    with _lock:
        idle, busy = list(_idle), list(_busy)
        _idle.clear()
    for worker in idle:
        worker.close()
    for worker in busy:  # closed by the threads that wait for them
        worker.kill()
