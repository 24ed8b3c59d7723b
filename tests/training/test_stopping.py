"""Signals: heard at any moment; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from fastunit.common import waiting
from fastunit.training.stopping import SIGNALS, stop_on_signals

# "busy" computes in C, where no Python handler runs, as a long operation of PyTorch would.
CODE = """
import hashlib, signal, sys, time
from fastunit.training.stopping import stop_on_signals
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with stop_on_signals() as stop:
    stop.graceful = True
    print("ready", flush=True)
    if "busy" in sys.argv:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)
    time.sleep(1)
print(stop.signal)
"""


def start(*words: object) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", CODE, *map(str, words)], text=True, **pipes)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_the_loop_a_signal_ends_what_happens(number):
    before = signal.getsignal(number)
    with pytest.raises(waiting.Interrupted) as caught, stop_on_signals():
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert caught.value.number == number and signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_loop_it_is_a_request_but_waits_end(number):
    with stop_on_signals() as stop:
        stop.graceful = True
        with waiting.on(lambda: "a step", interrupt=False):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        assert stop and stop.signal == number
    with stop_on_signals() as stop, pytest.raises(waiting.Interrupted):
        stop.graceful = True
        with waiting.on(lambda: "the file x"):
            os.kill(os.getpid(), number)
            time.sleep(1)


def test_a_second_signal_near_the_first_is_the_same_one():
    with stop_on_signals() as stop:
        stop.graceful = True
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert stop.signal == signal.SIGTERM


def test_a_second_one_ends_at_once_even_where_python_does_not_run():
    process = start("busy")
    try:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert "a second signal ends at once" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_an_ignored_hangup_stays_ignored():
    process = start("nohup")
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == "None\n"
