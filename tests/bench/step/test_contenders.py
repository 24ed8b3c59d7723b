"""Benchmarks in processes of their own: how they take turns, fail and end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.report import process_tree
from bench.step import contenders, tasks
from bench.step.worker import Worker, WorkerError, WorkerOutOfMemory, WorkerTimeout
from fastunit import config
from tests.support.benchmarks import SMALL


def test_summary_takes_ratios_round_by_round():
    ours, theirs = [0.1, 0.2, 0.4], [0.3, 0.2, 0.8]
    rounds = [{"baseline": b, "fastunit": a} for a, b in zip(ours, theirs, strict=True)]
    rounds += [{"strongest": 0.5, "fastunit": 0.1}]  # a pair of its own
    peaks = {"fastunit": 10, "baseline": None}
    facts = contenders.summary(rounds, peaks, "fastunit", images=4)
    assert facts["baseline_ratio"] == 2.0  # of 3, 1 and 2
    assert facts["baseline_spread"] == [1.4, 2.6]
    assert facts["strongest_ratio"] == 5.0
    assert facts["fastunit"] | {"p20_ms": 0, "p80_ms": 0} == {
        **{"p20_ms": 0, "median_ms": 150.0, "p80_ms": 0},
        **{"images_per_s": 26.667, "peak_mib": 10},
    }
    assert facts["baseline"]["p20_ms"] == pytest.approx(240) and "fastunit_ratio" not in facts


# ---- the process


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_returns_and_tells_what_went_wrong_with_the_end_of_its_output():
    with Worker() as worker:
        assert worker.call(math.sqrt, 9.0) == 3.0
        with pytest.raises(WorkerError, match=r"sqrt: ValueError: .*\n(.*\n)*  \| Traceback"):
            worker.call(math.sqrt, -1.0)
        assert worker.call(os.getpid) != os.getpid()
        with pytest.raises(WorkerTimeout, match=r"sleep gave no answer in 0\.2 s\n(.*\n)*.*File"):
            worker.ask(time.sleep, 60)
            worker.answer(0.2)


def test_a_worker_that_dies_says_its_last_words_again_and_again():
    with Worker() as worker:
        os.kill(worker.call(os.getpid), signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerError, match="the process of getpid ended with -9"):
                worker.call(os.getpid)
    with Worker() as worker, pytest.raises(WorkerError, match=r"_exit ended with 3"):
        worker.call(os._exit, 3)


def test_all_that_a_worker_started_ends_with_it():
    with Worker() as worker:
        own = worker.call(os.getpid)
        child = worker.call(os.posix_spawnp, "sleep", ["sleep", "60"], dict(os.environ))
        assert _alive(child) and set(process_tree.members(own)) == {own, child}
        assert process_tree.resident_mib(os.getpid()) > process_tree.resident_mib(own) > 1
    assert not _alive(own) and not _alive(child)


def test_peak_of_memory_counts_other_processes():
    words = [sys.executable, "-c", "x = bytearray(200 * 2**20); input()"]
    with process_tree.PeakMemory() as alone:
        time.sleep(0.05)
    with process_tree.PeakMemory() as both, subprocess.Popen(words, stdin=subprocess.PIPE) as child:
        while process_tree.resident_mib(child.pid) < 200:
            time.sleep(0.05)
        time.sleep(2 * process_tree.INTERVAL)
        child.communicate(b"\n")
    assert both.mib > alone.mib + 150


# ---- opponents


class Rounds:
    """What `opponents.compare` needs of pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info, self.used = {}, False

    def pedantic(self, run, args, setup, rounds):
        assert not self.used  # as pytest-benchmark
        self.used = True
        for _ in range(rounds):
            setup()
            run(*args)


class FakeWorker:
    """Answers at once; counts how many are alive; fails as the implementation's name says."""

    alive: set[FakeWorker] = set()  # noqa: RUF012
    most = 0

    def __enter__(self):
        self.alive.add(self)
        FakeWorker.most = max(FakeWorker.most, len(self.alive))
        return self

    def __exit__(self, *raised):
        self.stop()

    def stop(self):
        self.alive.discard(self)

    def ask(self, function, task, implementation, *others):
        self.implementation = implementation

    def answer(self, limit):
        failures = {
            "broken": WorkerError("a crash"),
            "large": WorkerOutOfMemory("CUDA out of memory"),
            "slow": WorkerTimeout("too slow"),
        }
        if error := failures.get(self.implementation):
            raise error

    def call(self, function, *args):
        return 7 if function is tasks.peak_mib else 0.25 * args[0]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(contenders, "Worker", FakeWorker)
    FakeWorker.alive.clear()
    FakeWorker.most = 0


def compare(*names: str, **options) -> dict:
    """Return the facts of a comparison, or raise what it raises with the facts beside it."""
    rounds = Rounds()
    found = {name: contenders.Contender(name, config.from_dict({})) for name in names}
    try:
        contenders.compare(rounds, "step", found, 2, seconds=1, **options)
    except WorkerError as error:
        error.facts = rounds.extra_info
        raise
    return rounds.extra_info


def test_never_more_than_two_processes_are_alive(fake):
    facts = compare("fastunit", "baseline", "a", "b", "c")
    assert FakeWorker.most == 2 and not FakeWorker.alive
    assert [facts[f"{name}_ratio"] for name in ("baseline", "a", "b", "c")] == [1.0] * 4
    assert facts["images_per_s"] == 8.0 and facts["c"]["peak_mib"] == 7


def test_together_is_for_those_who_ask(fake):
    compare("fastunit", "baseline", "a", "b", together=True)
    assert FakeWorker.most == 4 and not FakeWorker.alive


def test_a_failure_fails_the_case_after_the_others_were_timed(fake):
    with pytest.raises(WorkerError, match="broken: a crash") as caught:
        compare("fastunit", "broken", "baseline")
    assert caught.value.facts["broken"] == "failed"
    assert caught.value.facts["baseline_ratio"] == 1.0 and not FakeWorker.alive
    with pytest.raises(WorkerError, match="slow: too slow"):  # nobody asked for patience
        compare("fastunit", "slow")
    with pytest.raises(WorkerError, match="a crash"):
        compare("broken", "baseline")
    assert not FakeWorker.alive


def test_what_is_left_out_has_its_reason(fake):
    with pytest.warns(UserWarning, match="large is left out: CUDA out of memory"):
        facts = compare("fastunit", "large", "baseline")
    assert facts["large"] == "out of memory" and facts["baseline_ratio"] == 1.0
    with pytest.warns(UserWarning, match="slow is left out"):
        facts = compare("fastunit", "slow", patience=5)
    assert facts["slow"] == "out of time" and facts["fastunit"]["images_per_s"] == 8.0


def test_tiny_networks_keep_the_size_of_images():
    settings = config.from_dict({"crop_image_height": 64, "crop_image_width": 96})
    tiny = contenders.Contender("fastunit", settings, ("x",), ("y",)).tiny()
    assert tiny.settings.crop == (64, 96) and tiny.settings.gen.dim == 4
    assert (tiny.without, tiny.added) == (("x",), ("y",))


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_opponents_take_turns_and_those_that_fail_are_named(together):
    settings = config.from_dict(SMALL)
    found = {name: contenders.Contender(name, settings) for name in ("fastunit", "baseline")}
    # Reading a switch that does not exist fails in the process, as a compiler might.
    found["broken"] = contenders.Contender("fastunit", settings, without=("nothing",))
    rounds = Rounds()
    with pytest.raises(WorkerError, match=r"broken: begin: KeyError: 'nothing'"):
        contenders.compare(rounds, "step", found, 6, seconds=0.1, together=together)
    facts = rounds.extra_info
    assert facts["opponents"] == list(found) and facts["broken"] == "failed"
    assert facts["fastunit"]["median_ms"] > 0 and facts["baseline"]["peak_mib"] >= 0
    assert facts["images_per_s"] == facts["fastunit"]["images_per_s"]


# ---- tasks: both sides do the same


def test_both_translations_have_the_same_weights(monkeypatch):
    settings = config.from_dict(SMALL)
    x_a, _ = tasks.random_images(settings, tasks.DEVICE)
    monkeypatch.setattr(tasks, "random_images", lambda *args: (x_a, x_a))
    ours, theirs = (tasks.TASKS["translate"](n, settings)() for n in ("fastunit", "baseline"))
    assert ours.shape == theirs.shape == x_a.shape
    assert (ours - theirs).abs().max() < 1e-4


def test_both_loaders_read_pictures_of_the_same_size_and_range(photos):
    pytest.importorskip("nvidia.dali")
    keys = {"data_root": str(photos), "batch_size": 5, "num_workers": 1, "new_size": 24}
    settings = config.from_dict(SMALL | keys)
    batches = [tasks.TASKS["data"](name, settings)() for name in ("fastunit", "baseline")]
    assert all(batch.shape == (5, 3, 16, 24) and batch.is_floating_point() for batch in batches)
    # The five pictures of an epoch: uniform noise, so the mean over all crops is near 0.
    for batch in batches:
        assert -1 <= batch.min() < -0.5 and 0.5 < batch.max() <= 1 and abs(batch.mean()) < 0.1
