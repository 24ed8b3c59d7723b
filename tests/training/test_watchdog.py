"""The watchdog: what is awaited is said, with stack traces, once per period."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

from fastunit.common import waiting
from fastunit.training.watchdog import FILE, STALLED, Watchdog


def test_no_progress_is_told_with_what_is_awaited(tmp_path, caplog):
    with (
        caplog.at_level(logging.WARNING),
        Watchdog(tmp_path, 0.4, "warn"),
        waiting.on(lambda: "the files x.png"),
    ):
        time.sleep(1.1)
    messages = [record.getMessage() for record in caplog.records]
    assert 1 <= len(messages) <= 3 and "waiting for the files x.png" in messages[0]
    assert str(tmp_path / FILE) in messages[0]
    assert "test_no_progress_is_told" in (tmp_path / FILE).read_text()


def test_progress_keeps_it_silent(tmp_path, caplog):
    with Watchdog(tmp_path, 0.6, "warn"):
        for _ in range(10):
            time.sleep(0.1)
            waiting.progress()
    assert not caplog.records and not (tmp_path / FILE).exists()


def test_0_switches_it_off(tmp_path, caplog):
    with Watchdog(tmp_path, 0, "exit"):
        time.sleep(0.3)
    assert not caplog.records


def test_a_folder_that_is_gone_does_not_silence_it(tmp_path, caplog):
    with Watchdog(tmp_path / "gone", 0.2, "warn"):
        time.sleep(0.6)
    assert "could not be written" in caplog.records[0].getMessage()


def test_exit_ends_the_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; "
        "from fastunit.training.watchdog import Watchdog\n"
        "with Watchdog(Path(sys.argv[1]), 0.3, 'exit'): time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], timeout=60)
    assert done.returncode == STALLED and (tmp_path / FILE).is_file()
