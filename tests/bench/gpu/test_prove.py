"""bench/gpu/prove.py and its stages: limits, outcomes, logs; with commands in place of a GPU's."""

from __future__ import annotations

import json
import signal
import sys
import time
from importlib.util import find_spec

import pytest
import torch

from bench.gpu import checks, measure, prove
from bench.gpu.prove import Stage
from bench.gpu.workspace import DONE, FAILED, LEFT_OUT, Outcome, Workspace
from bench.step import profile
from fastunit.common import cli


@pytest.fixture
def room(tmp_path):
    return Workspace(tmp_path, 60)


@pytest.fixture
def commands(monkeypatch):
    """Return a function that gives commands by their scripts in place of those that run."""

    def replace(**codes):
        asked = []

        def run(self, words, changes=None, seconds=0):
            words = list(map(str, words))
            asked.append((words, changes or {}))
            return next((code for name, code in codes.items() if name in " ".join(words)), 0)

        monkeypatch.setattr(Workspace, "run", run)
        return asked

    return replace


# ---- the command


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_without_a_gpu_it_is_refused_in_one_line(tmp_path, capsys):
    assert cli.guard(lambda: prove.main(["--out", str(tmp_path / "x")])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: bench.gpu.prove needs an NVIDIA GPU") and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_calls_hold_every_stage_and_fit_into_ten_minutes():
    assert {name for names in prove.CALLS.values() for name in names} == set(prove.STAGES)
    assert prove.LIMIT + measure.GRACE < 600
    for names in prove.CALLS.values():
        first = [prove.STAGES[name].seconds for name in names[:-1]]
        assert (
            prove.LIMIT - sum(first) - 2 * measure.GRACE >= measure.LEAST
        )  # the last gets some, too


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """Return prove.main with these stages, as if there were a GPU: (exit code, prove.md)."""

    def main(stages, *argv):
        monkeypatch.setattr(prove, "STAGES", {n: Stage(f, 100) for n, f in stages.items()})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA TEST")
        code = prove.main(["--out", str(tmp_path), *map(str, argv)])
        assert capsys.readouterr().out.endswith((tmp_path / "prove.md").read_text() + "\n")
        return code, (tmp_path / "prove.md").read_text()

    return main


def test_a_failure_does_not_end_it_and_shows_in_the_code(main):
    stages = {
        "a": lambda room: Outcome(FAILED, "x ended with 7"),
        "b": lambda room: Outcome.left_out("no y here"),
        "c": lambda room: Outcome(DONE, "3 passed"),
    }
    code, page = main(stages)
    rows = [line.strip("| ").split(" | ") for line in page.splitlines()[-3:]]
    assert code == 1 and page.startswith("# NVIDIA TEST\n")
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert [row[2] for row in rows] == [
        "FAILED: x ended with 7", "left out: no y here", "done: 3 passed",
    ]  # fmt: skip
    assert main(stages, "--stages", "c", "b")[0] == 0


def test_stages_share_the_limit(main):
    rooms = []

    def stage(room):
        rooms.append(room)
        time.sleep(0.2)
        return Outcome(DONE)

    limit = 2 * measure.GRACE + measure.LEAST + 0.1
    code, page = main(dict.fromkeys("ab", stage), "--limit", limit)
    assert code == 0 and len(rooms) == 1
    assert measure.LEAST <= rooms[0].seconds <= measure.LEAST + 0.1
    assert f"left out: the {limit:.0f} s are spent" in page


def test_a_stage_alone_gets_all_the_time(main):
    rooms = []

    def stage(room):
        rooms.append(room)
        return Outcome(DONE)

    main(dict.fromkeys("ab", stage), "--stages", "a", "--limit", 500)
    main(dict.fromkeys("ab", stage), "--limit", 500)
    given = [room.seconds for room in rooms]
    assert given == pytest.approx([500 - 2 * measure.GRACE, 100, 100], abs=1)


# ---- a stage's commands


def test_output_goes_to_the_log_and_its_end_is_shown(room, capsys):
    (room.out / "prove.log").write_text("before\n")
    program = "import os; print('x' * 4000 + os.environ['GIVEN']); raise SystemExit(7)"
    assert room.run([sys.executable, "-c", program], {"GIVEN": "end"}) == 7
    log, shown = (room.out / "prove.log").read_text(), capsys.readouterr().out
    assert log.startswith("before\n") and log.endswith("xend\n") and "x" * 4000 in log
    assert shown.endswith("xend\n\n") and len(shown) < 4000 and "before" not in shown


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN])
def inherited(request):
    """Handle interrupts as a foreground and as a background job of a shell does."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_command_that_overruns_is_told_first(room, monkeypatch, inherited):
    monkeypatch.setattr(measure, "GRACE", 5)
    program = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('told')"
    begin = time.monotonic()
    assert room.run([sys.executable, "-c", program], seconds=0.1) != 0
    assert time.monotonic() - begin < 30
    assert (room.out / "prove.log").read_text().endswith("told\n")


def test_outcomes_name_what_failed():
    assert Outcome.of({"a": 0, "b": 0}) == Outcome(DONE)
    assert str(Outcome.of({"a": 0, "b": 3, "c": 1}, "so")) == (
        "FAILED: b ended with 3, c ended with 1, so"
    )


JUNIT = """<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="20">
<testcase classname="a" name="b"/></testsuite></testsuites>"""


def test_tests_are_counted(room, monkeypatch):
    asked = []

    def run(self, words, changes=None):
        asked.append((words, changes))
        (self.out / "tests.xml").write_text(JUNIT)
        return 1

    monkeypatch.setattr(Workspace, "run", run)
    outcome = checks.tests(room)
    assert outcome.what == FAILED
    assert outcome.details == "pytest ended with 1, 14 passed, 2 failed, 1 errors, 3 skipped"
    words, changes = asked[0]
    assert words[words.index("-m", 3) + 1] == "gpu" and not changes


def test_tests_that_leave_nothing_have_failed(room, commands):
    (room.out / "tests.xml").write_text(JUNIT)  # of an earlier run
    commands()
    assert checks.tests(room) == Outcome(FAILED, "pytest ended with 1, it has left no results")


def test_only_skipped_tests_prove_nothing(room, monkeypatch):
    def run(self, words, changes=None):
        (self.out / "tests.xml").write_text('<testsuite tests="4" skipped="4"/>')
        return 0

    monkeypatch.setattr(Workspace, "run", run)
    assert checks.tests(room).what == FAILED


def test_kernels_are_looked_at_by_both_tools(room, commands, monkeypatch):
    asked = commands(racecheck=1)
    monkeypatch.setattr(checks.shutil, "which", lambda name, path=None: f"/x/{name}")
    assert checks.sanitize(room) == Outcome(FAILED, "racecheck ended with 1")
    plain, memcheck, racecheck = (words for words, _ in asked)
    assert plain == [sys.executable, "-m", "bench.gpu.every_kernel"]
    for words, tool in ((memcheck, "memcheck"), (racecheck, "racecheck")):
        assert words[:2] == ["/x/compute-sanitizer", f"--tool={tool}"]
        assert words[-3:] == plain and "--error-exitcode=1" in words
    assert asked[1][1]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_without_the_sanitizer_it_is_said(room, commands, monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name, path=None: None)
    commands()
    outcome = checks.sanitize(room)
    assert outcome.what == LEFT_OUT and "compute-sanitizer is neither on the PATH" in str(outcome)
    commands(every_kernel=1)
    assert checks.sanitize(room).what == FAILED


@pytest.mark.parametrize("installed", [True, False])
def test_the_report_says_what_it_lacks(room, commands, monkeypatch, installed):
    monkeypatch.setattr(checks, "_installed", lambda module: installed)
    asked = commands()
    outcome = checks.report(room, "--quick")
    ((words, _),) = asked
    assert words[:3] == [sys.executable, "-m", "bench.gpu.measure"]
    args = measure._parser().parse_args(words[3:])
    assert args.quick and args.out == room.out
    assert measure.LEAST <= args.limit <= room.seconds - measure.GRACE
    assert ("data" in args.only) == installed
    assert outcome.what == DONE and ("without data" in outcome.details) != installed


def test_the_profile_and_the_kernels_are_programs(room, commands):
    asked = commands()
    checks.profile(room)
    checks.sanitize(room)
    modules = {words[words.index("-m") + 1] for words, _ in asked}
    assert modules == {"bench.step.profile", "bench.gpu.every_kernel"}
    assert all(find_spec(module) for module in modules)
    page = profile._parser().parse_args(asked[0][0][3:])
    assert page.out == room.out / "profile.md" and (page.size, page.batch) == (256, 1)


def test_the_tiles_are_written_last(room, commands):
    asked = commands()
    assert checks.tiles(room) == Outcome(DONE)
    ((words, _),) = asked
    assert words[1:-1] == ["-m", "bench.gpu.tiles_report", "--time", "-o"]
    assert words[-1] == str(room.out / "tiles.md")
    assert prove.CALLS[2][-1] == "tiles"


# ---- training


def test_training_without_pictures_or_dali_is_left_out(room, monkeypatch, tmp_path):
    assert "give --data" in str(checks.train(room))
    room.data = (tmp_path,)
    monkeypatch.setattr(checks, "_installed", lambda module: False)
    assert checks.train(room).what == LEFT_OUT and "DALI" in str(checks.train(room))


def test_what_is_installed_is_known():
    assert checks._installed("xml.etree") and not checks._installed("no_such.module")


@pytest.mark.slow
def test_training_ends_in_time_with_a_result(room, config_file, photos, monkeypatch, tmp_path):
    pytest.importorskip("nvidia.dali", reason="pictures are read with NVIDIA DALI")
    monkeypatch.setattr(checks, "CONFIGS", {photos.name: str(config_file)})
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(checks, "MEASURING", 40)
    room.out, room.data, room.seconds = tmp_path / "out", (photos,), 65
    room.out.mkdir()
    assert checks.train(room) == Outcome(DONE)
    result = json.loads((room.out / "photos.json").read_text())
    assert result["iteration"] > 0 and result["pairs"] == 2
    assert (room.out / "photos.png").stat().st_size > 0
