"""What all command lines share: errors, devices, messages."""

from __future__ import annotations

import argparse
import errno
import logging
import signal

import pytest
import torch
from tqdm import tqdm

from fastunit.common import cli, files, waiting
from fastunit.common.errors import ConfigError, StorageError, UserError
from tests.support.doubles import raising


@pytest.mark.parametrize("status", [0, 1])
def test_guard_returns_the_exit_status(status, capsys):
    assert cli.guard(lambda: status) == status
    assert capsys.readouterr() == ("", "")


def test_guard_prints_a_user_error_alone(capsys):
    assert cli.guard(raising(ConfigError("lr=-1 must be at least 0"))) == 2
    assert capsys.readouterr() == ("", "error: lr=-1 must be at least 0\n")


@pytest.mark.parametrize("kind", [StorageError, OSError])
def test_guard_turns_a_file_that_cannot_be_written_into_3(kind, capsys):
    assert cli.guard(raising(kind("cannot write x: disk full"))) == 3
    assert capsys.readouterr() == ("", "error: cannot write x: disk full\n")


def test_guard_says_what_the_disk_says_in_words(tmp_path, capsys):
    def full():
        with files.atomic(tmp_path / "config.yaml") as temporary:
            raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    assert cli.guard(full) == 3
    said = f"error: {tmp_path / 'config.yaml'}: No space left on device\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_guard_turns_other_signals_into_128_and_their_number(number, capsys):
    assert cli.guard(raising(waiting.Interrupted(number))) == 128 + number
    assert capsys.readouterr().err == "interrupted\n"


def test_guard_turns_ctrl_c_into_130(capsys):
    assert cli.guard(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("1e5", 100_000), ("2.5e3", 2500), ("10_000", 10_000), ("-3", -3)],
)
def test_a_count_is_read_as_people_write_it(text, number):
    found = cli.count(text)
    assert found == number and isinstance(found, int)
    assert cli.count("9007199254740993") == 9007199254740993  # more than a float holds


@pytest.mark.parametrize("text", ["1.5", "1e-3", "many", "", "inf", "nan", "1e999"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number, such as 200000"):
        cli.count(text)


def test_a_positive_count_is_at_least_one():
    assert cli.positive("1e1") == 10
    with pytest.raises(argparse.ArgumentTypeError, match=r"'0' must be .* at least 1"):
        cli.positive("0")


def test_guard_names_a_missing_package_and_lets_missing_modules_of_ours_through(capsys):
    assert cli.guard(raising(ModuleNotFoundError(name="PIL")), extra="translate") == 2
    out, err = capsys.readouterr()
    assert out == "" and "package PIL is not installed" in err and "[translate]" in err
    with pytest.raises(ModuleNotFoundError):
        cli.guard(raising(ModuleNotFoundError(name="fastunit.nothing")))


def test_guard_lets_bugs_through():
    with pytest.raises(ValueError, match="a bug"):
        cli.guard(raising(ValueError("a bug")))


def gpus(monkeypatch, count: int) -> list[int]:
    """Pretend that PyTorch sees `count` GPUs; returns the list of those made current."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_gpu_is_picked_and_made_current(monkeypatch, name, device):
    current = gpus(monkeypatch, 2)
    assert cli.pick_device(name) == torch.device(device)
    assert current == [torch.device(device).index]


@pytest.mark.parametrize(("name", "count"), [("auto", 0), ("cpu", 0), ("cpu", 2)])
def test_the_cpu_is_picked(monkeypatch, name, count):
    current = gpus(monkeypatch, count)
    assert (cli.pick_device(name), current) == (torch.device("cpu"), [])


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_without_any(monkeypatch, name):
    gpus(monkeypatch, 0)
    with pytest.raises(UserError, match=f"--device {name}: PyTorch sees no GPU here.*cpu"):
        cli.pick_device(name)


def test_a_gpu_beyond_the_last(monkeypatch):
    gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="--device cuda:2: there is only cuda:0 to cuda:1 here"):
        cli.pick_device("cuda:2")


@pytest.mark.parametrize(
    "name", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "mps", ""]
)
def test_a_device_of_another_name(monkeypatch, name):
    gpus(monkeypatch, 2)
    with pytest.raises(UserError, match=f"--device {name} must be auto, cpu, cuda or"):
        cli.pick_device(name)


def test_messages_go_to_stderr_once_and_plain(capsys):
    cli.setup_logging()
    cli.setup_logging()
    logger = logging.getLogger("fastunit.anything")
    logger.debug("unseen")
    logger.info("passed over %d files", 3)
    logger.warning("the average starts here")
    assert capsys.readouterr() == ("", "passed over 3 files\nthe average starts here\n")


def test_messages_leave_a_progress_bar_whole(capsys):
    cli.setup_logging()
    with tqdm(total=2, desc="translating", ascii=True) as bar:
        bar.update()
        logging.getLogger("fastunit").warning("a message")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "a message" in lines
