"""The command ``fastunit``: what it prints, which module it runs, and that it starts quickly."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version

import pytest

import fastunit
from fastunit.__main__ import COMMANDS, main
from tests.support.doubles import raising
from tests.support.processes import python

VERSION = f"fastunit {version('fastunit')}\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_it_names_the_commands(argv, capsys):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: fastunit COMMAND") and err == ""
    assert all(f"  {name} " in out for name in COMMANDS)


def test_its_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == VERSION


@pytest.mark.parametrize("name", ["trian", "", "--config", "../train", "__main__"])
def test_a_wrong_command_is_refused_in_one_line(name, capsys):
    assert main([name, "--help"]) == 2
    choices = "train, translate, evaluate, export, demo, adapt or warm"
    wanted = f"error: {name!r} is not a command; choose {choices}\n"
    assert capsys.readouterr() == ("", wanted)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_a_version_under_both_names(name, capsys):
    module = f"fastunit.{name}"
    for run, prog in ((main, f"fastunit {name}"), (None, f"python -m {module}")):
        argv = [name] if run else []
        run = run or import_module(module).main
        for option, start in (("--help", f"usage: {prog} ["), ("--version", VERSION)):
            with pytest.raises(SystemExit) as ended:
                run([*argv, option])
            assert ended.value.code == 0
            assert capsys.readouterr().out.startswith(start)


def test_a_command_gets_its_arguments_and_gives_its_exit_code(monkeypatch):
    calls = []
    module = import_module("fastunit.train")
    monkeypatch.setattr(module, "main", lambda argv, prog: calls.append((argv, prog)) or 143)
    assert main(["train", "--seed", "3", "--", "--help"]) == 143
    assert calls == [(["--seed", "3", "--", "--help"], "fastunit train")]


def test_a_users_error_is_said_in_one_line(capsys):
    assert main(["train", "--device", "tpu"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: --device tpu must be") and err.count("\n") == 1


def test_the_console_script_is_this_function():
    (script,) = entry_points(group="console_scripts", name="fastunit")
    assert script.load() is main


def test_choosing_a_command_comes_before_importing_pytorch():
    code = (
        "import sys; from fastunit.__main__ import main\n"
        "main([]); main(['--version']); main(['trian'])\n"
        "heavy = ('torch', 'triton', 'numpy', 'nvidia.dali', 'yaml', 'matplotlib', 'PIL', 'tqdm')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_fastunit_ends_with_the_exit_code():
    done = python("-m", "fastunit", "x")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_every_public_name_is_there():
    assert all(getattr(fastunit, name) is not None for name in fastunit.__all__)
    assert f"fastunit {fastunit.__version__}\n" == VERSION
    assert set(fastunit.__all__) - {"__version__", "Config", "config", "errors"} == set().union(
        *fastunit._MODULES.values()
    )
    with pytest.raises(AttributeError, match=r"module 'fastunit' has no attribute 'nothing'"):
        _ = fastunit.nothing


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    missing = raising(PackageNotFoundError("fastunit"))
    monkeypatch.setattr("importlib.metadata.version", missing)
    assert fastunit.__version__ == "unknown"
