"""Decoding in other processes: whatever becomes of them is the file's reason."""

from __future__ import annotations

import errno
import io
import os
import signal
import struct
import subprocess
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastunit.common.errors import DataError, ResourceError
from fastunit.data import decoding, image_io
from fastunit.data.image_io import Limits, Reading
from fastunit.data.validation import SizeRule, validate
from tests.support.doubles import raising

pytest.importorskip("nvidia.dali", reason="the files are decoded with NVIDIA DALI")
ANY = Reading()


@pytest.fixture
def small(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    return tmp_path / "small.png"


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """Return an image whose decoding takes seconds."""
    file = tmp_path_factory.mktemp("slow") / "slow.png"
    rows = np.random.default_rng(0).integers(0, 256, (64, 8000, 3), np.uint8)
    Image.fromarray(np.tile(rows, (100, 1, 1))).save(file, compress_level=1)
    return file


def png(width: int, height: int) -> bytes:
    """Return an RGB PNG of zeros; its size does not depend on its pixels' number by much."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    deflater = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(deflater.compress(row) for _ in range(height)) + deflater.flush()
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG of a few pixels that claims more."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def test_the_same_pixels_as_in_this_process(small):
    pixels = decoding.decode(small, ANY)
    assert np.array_equal(pixels, image_io.read(small, 3))
    found = decoding.measure(small, ANY)
    assert (found.height, found.width, found.values) == (9, 12, None)


def test_a_process_that_dies_is_the_files_reason(small, slow):
    decoding.measure(small, ANY)

    def kill() -> None:
        time.sleep(0.5)
        (worker,) = decoding._busy
        worker._process.send_signal(signal.SIGSEGV)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(DataError, match=r"damaged: decoding it ended the process .* by SIGSEGV"):
        decoding.measure(slow, ANY)
    killer.join()
    decoding.measure(small, ANY)  # by a new process


def test_a_file_has_its_time(small, slow):
    decoding.measure(small, ANY)
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"took more than data\.max_seconds=0\.3"):
        decoding.measure(slow, Reading(limits=Limits(seconds=0.3)))
    assert time.perf_counter() - start < 3
    decoding.measure(small, ANY)


BOMBS = {
    "pixels.png": lambda: png(9000, 8000),
    "sizes.jpg": lambda: jpeg(13000, 13000),
    "vp8l.webp": lambda: b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + b"\xff" * 13,
    "vp8x.webp": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6,
    "vp8.webp": lambda: b"RIFF\x1a\0\0\0WEBPVP8 \x0d\0\0\0\0\0\0\x9d\x01\x2a" + b"\xff" * 7,
}  # fmt: skip


def test_waiting_for_a_processor_does_not_count(small, monkeypatch):
    decoding.measure(small, ANY)
    (worker,) = decoding._idle
    os.kill(worker._process.pid, signal.SIGSTOP)
    times = iter((10.0, 11.0, 12.0))  # before, and at two looks
    monkeypatch.setattr(decoding._Worker, "_starved", lambda self: next(times, 12.0))
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"took more than data\.max_seconds=0\.1"):
        decoding.measure(small, Reading(limits=Limits(seconds=0.1)))
    assert time.monotonic() - begun > 2


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_headers(tmp_path, name):
    (tmp_path / name).write_bytes(BOMBS[name]())
    with pytest.raises(DataError, match=r"too large: \d+x\d+ pixels, more than data\.max_pixels="):
        decoding.measure(tmp_path / name, ANY)


def test_the_limits_can_be_changed(tmp_path):
    (tmp_path / "x.png").write_bytes(png(60, 50))
    limits = Limits(pixels=3000)
    assert decoding.measure(tmp_path / "x.png", Reading(limits=limits)).width == 60
    with pytest.raises(DataError, match=r"60x50 pixels, more than data\.max_pixels=2999"):
        decoding.measure(tmp_path / "x.png", Reading(limits=replace(limits, pixels=2999)))
    with pytest.raises(DataError, match=r"bytes, more than the limit of 50 .data\.max_bytes"):
        decoding.measure(tmp_path / "x.png", Reading(limits=replace(limits, bytes=50)))


def test_sparse_files_and_many_scans(tmp_path):
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(6 * 2**30)
    with pytest.raises(DataError, match="more than the limit"):
        decoding.measure(tmp_path / "sparse.png", ANY)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", progressive=True)
    data = (tmp_path / "x.jpg").read_bytes()
    scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(data[:-2] + scan * 20_000 + data[-2:])
    with pytest.raises(DataError, match=r"JPEG of 20,0\d\d scans"):
        decoding.measure(tmp_path / "x.jpg", ANY)


def test_more_pixels_than_pillow_allows_are_read_if_asked_for(tmp_path):
    (tmp_path / "x.png").write_bytes(png(19000, 10000))
    found = decoding.measure(tmp_path / "x.png", Reading(limits=Limits(pixels=200_000_000)))
    assert (found.height, found.width) == (10000, 19000)


@pytest.mark.parametrize("first", [60, 10])
def test_a_tiff_with_two_widths_is_refused(tmp_path, first):
    entries = [(256, first), (256, 70 - first), (257, 30), (258, 8), (262, 1), (273, 8), (279, 9)]
    body = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries)
    data = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(2000)
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(DataError, match="TIFF tags 256 stand twice"):
        decoding.measure(tmp_path / "x.tif", ANY)


def test_idle_processes_that_have_just_ended_are_no_reason(small, monkeypatch):
    class Ended:
        alive = True  # not yet seen to have ended

        def ask(self, *args):
            raise decoding._Lost("")

        def close(self):
            pass

    monkeypatch.setattr(decoding, "_idle", [Ended(), Ended()])
    assert decoding.measure(small, ANY).height == 9


def test_processes_end_when_they_are_not_needed(small):
    decoding.measure(small, ANY)
    pids = [worker._process.pid for worker in decoding._idle]
    assert pids
    decoding.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    decoding.measure(small, ANY)


def test_a_process_that_starts_ends_too(small):
    decoding.stop()
    reasons = []

    def measure():
        try:
            decoding.measure(small, ANY)
        except ResourceError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=measure)
    thread.start()
    while not decoding._busy:
        time.sleep(0.001)
    begun = time.monotonic()
    decoding.stop()
    thread.join()
    assert len(reasons) == 1 and time.monotonic() - begun < 1 and not decoding._busy


def test_a_process_that_does_not_start_is_told(small, monkeypatch):
    decoding.stop()
    monkeypatch.setattr(decoding, "_START", 0)
    with pytest.raises(ResourceError, match="has not started within 0 s"):
        decoding.measure(small, ANY)
    assert not decoding._busy


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EMFILE, "ulimit -n"), (errno.EAGAIN, "ulimit -u")]
)
def test_a_process_that_the_system_refuses_is_no_image_s_fault(small, monkeypatch, number, remedy):
    decoding.stop()
    monkeypatch.setattr(subprocess, "Popen", raising(OSError(number, os.strerror(number))))
    for skip_bad in (False, True):
        with pytest.raises(ResourceError, match=f"{os.strerror(number)}; .*{remedy}"):
            validate([small], rule=SizeRule(None, None, ANY), workers=1, skip_bad=skip_bad)


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"[]", b"{}", b'{"shape": [1, 2], "digest": "", "values": null}', b"1" * 9000),
        b'{"shape": [-5, 4, 3], "digest": "' + b"00" * 16 + b'", "values": null}',
    ],
)
def test_nonsense_of_a_process_is_not_believed(answer):
    with pytest.raises(decoding._Lost, match="no valid answer"):
        decoding._checked(answer, 3)
