"""bench.experiments.sharing: the measure, the tables, and which runs are trained, and how."""

from __future__ import annotations

import sys
from concurrent.futures import wait
from types import SimpleNamespace

import pytest
import torch

from bench.experiments import sharing
from bench.experiments.sharing import VARIANTS, Run, Score, Variant
from fastunit import config
from fastunit.common import files
from fastunit.common.errors import UserError
from tests.support.checkout import ROOT
from tests.support.processes import python

OWN = Variant(0, True, "own")


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(out=tmp_path, iterations=7)


def levels(*values):
    """Return one picture [1, 3, 1, W] of 8-bit levels, a colour for each pixel."""
    return torch.tensor(values, dtype=torch.float32).T[None, :, None] / 127.5 - 1


def test_a_pixel_is_right_when_no_channel_is_more_than_16_levels_off():
    truth = levels([100, 100, 100], [100, 100, 100], [0, 255, 128], [0, 0, 0])
    guess = levels([116, 84, 100], [100, 117, 100], [16, 239, 128], [17, 0, 0])
    assert sharing.right(guess, truth) == 0.5
    assert sharing.right(truth, truth) == 1
    assert sharing.right(truth[..., :1], truth) == 0.5, "one pixel compared with all"
    assert sharing.right(levels([400, -90, 100]), levels([255, 0, 100])) == 1, "clamped as files"


def test_the_constant_is_the_median_where_that_is_right_more_often():
    images = torch.cat([levels([0, 0, 0])] * 3 + [levels([200, 0, 0])])
    assert sharing.right(sharing.constant(images), images) == 0.75
    assert torch.equal(sharing.constant(images), levels([0, 0, 0]))
    images = torch.cat([levels([0, 0, 0]), levels([30, 0, 0])])
    assert sharing.right(sharing.constant(images), images) == 1, "the mean, 15, is near both"


def test_the_one_colour_is_the_most_frequent_not_the_middle_one():
    images = torch.cat([levels([0, 9, 0], [0, 9, 0]), levels([7, 7, 7], [200, 0, 0])])
    assert torch.equal(sharing.colour(images), levels([0, 9, 0]))


def test_the_table_has_means_and_spreads_over_seeds():
    scores = {
        Run(OWN, 0): Score(0.1, 0.2, 0.3),
        Run(OWN, 1): Score(0.3, 0.6, 0.3),
        Run(Variant(2, False, "copy"), 0): Score(0.5, 0.25, 0.125),
    }
    lines = sharing.table(scores, {"left unchanged": Score(0.25, 0.5, 0.75)})
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]] == [
        ["0", "on", "own", "0.200 ± 0.141", "0.100, 0.300", "0.400 ± 0.283", "0.300 ± 0.000"],
        ["2", "off", "copy", "0.500", "0.500", "0.250", "0.125"],
        ["left unchanged", "-", "-", "0.250", "-", "0.500", "0.750"],
    ]
    assert {line.count("|") for line in lines} == {8}


def test_differences_are_taken_within_seeds_and_have_students_intervals():
    def score(variant, seed):
        """Return 0.1 a seed, 0.2 for the cycle with own starts, 0.01 for both blocks, a little."""
        cycle = 0.2 * (variant.cycle and variant.init_b == "own")
        return Score(0.1 * seed + cycle + 0.01 * (variant.shared == 2) * seed, 0, 0)

    scores = {
        Run(variant, seed): score(variant, seed) for seed in (0, 1, 2) for variant in VARIANTS
    }
    rows = [line.split("|")[1:-1] for line in sharing.differences(scores)[2:]]
    found = {label.strip(): [cell.strip() for cell in cells] for label, *cells in rows}
    assert len(found) == 12
    assert found["cycle on minus off (own; mean over sharing)"] == [
        "+0.200",
        "+0.200 to +0.200",
        "yes",
    ]
    assert found["copy minus own (cycle on; mean over sharing)"][0] == "-0.200"
    assert found["copy minus own (cycle off; mean over sharing)"][2] == "no"
    # 0.00, 0.01, 0.02: mean 0.01, standard error 0.01 / sqrt(3), t of two degrees of freedom 4.30
    assert found["2 shared minus none (cycle off, copy)"] == ["+0.010", "-0.015 to +0.035", "no"]
    assert found["1 shared minus none (cycle on, own)"][0] == "+0.000"


def test_one_seed_has_no_interval():
    scores = {Run(variant, 4): Score(0.5, 0, 0) for variant in VARIANTS}
    assert all(line.endswith("| +0.000 | - | - |") for line in sharing.differences(scores)[2:])


def test_students_t_is_there_for_every_number_of_seeds_that_is_taken():
    assert sorted(sharing.T) == list(range(2, 11))
    torch.manual_seed(0)
    for seeds, t in sharing.T.items():  # 19 of 20 intervals hold the mean
        draws = torch.randn(100_000, seeds, dtype=torch.float64)
        held = draws.mean(1).abs() <= t * draws.std(1) / seeds**0.5
        assert held.double().mean().item() == pytest.approx(0.95, abs=0.003)


def test_there_are_all_combinations_and_no_run_twice(args):
    assert len(VARIANTS) == len(set(VARIANTS)) == 12
    runs = [Run(variant, seed) for variant in VARIANTS for seed in range(5)]
    assert len({run.folder(args.out) for run in runs}) == 60
    seen = [run.settings(args) for run in runs]
    assert len({config.dump_yaml(settings) for settings in seen}) == 60


@pytest.mark.parametrize("cycle", [True, False])
def test_a_run_is_trained_with_its_own_settings(args, cycle):
    run = Run(Variant(2, cycle, "copy"), 5)
    command = run.command(args)
    assert command[:3] == [sys.executable, "-m", "fastunit.train"]
    (path,) = (word.removeprefix("--config=") for word in command if "--config=" in word)
    settings = config.load(path)
    assert (settings.share.enc, settings.share.dec, settings.init_b) == (2, 2, "copy")
    assert (settings.seed, settings.max_iter, settings.data.builtin) == (5, 7, "scene_maps")
    weights = settings.recon_x_cyc_w, settings.recon_kl_cyc_w
    assert weights == ((10, 0.01) if cycle else (0, 0))
    assert f"--output={run.folder(args.out)}" in command


def test_a_finished_run_is_not_repeated_and_one_of_other_settings_is_refused(args, monkeypatch):
    run = Run(OWN, 0)
    monkeypatch.setattr(sharing.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    files.write_text(config.dump_yaml(run.settings(args)), run.folder(args.out) / "config.yaml")
    files.write_text("{}", run.folder(args.out) / "result.json")
    sharing._train(run, args)
    args.iterations = 8
    with pytest.raises(UserError, match="holds a run of other settings; choose another --out"):
        sharing._train(run, args)


def test_what_was_stopped_before_a_checkpoint_is_begun_anew(args, monkeypatch):
    run, begun = Run(OWN, 0), []
    files.write_text("", run.folder(args.out) / "metrics.jsonl")
    done = SimpleNamespace(returncode=2, stderr="no such folder")
    monkeypatch.setattr(sharing.subprocess, "run", lambda c, **_: begun.append(c) or done)
    with pytest.raises(UserError, match="ended with 2: no such folder"):
        sharing._train(run, args)
    assert not run.folder(args.out).exists() and len(begun) == 1


def test_nothing_more_is_begun_after_a_run_has_failed(args, monkeypatch):
    begun, args.jobs = [], 1
    monkeypatch.setattr(sharing, "_train", lambda run, _: begun.append(run) or 1 / 0)
    # Told of it late, as the main thread is on a busy machine.
    monkeypatch.setattr(sharing, "as_completed", lambda trainings: wait(trainings).done)
    with pytest.raises(ZeroDivisionError):
        sharing._train_all([Run(variant, 0) for variant in VARIANTS], args)
    assert begun == [Run(VARIANTS[0], 0)]


def test_a_report_needs_one_complete_seed(tmp_path, capsys):
    for variant in VARIANTS[1:]:
        files.write_text("{}", Run(variant, 0).folder(tmp_path) / "result.json")
    assert sharing.main(["--out", str(tmp_path), "--report"]) == 2
    assert "no seed of which all 12 runs are done" in capsys.readouterr().err


def test_more_seeds_than_there_are_intervals_for_are_refused(capsys):
    with pytest.raises(SystemExit):
        sharing.main(["--seeds", "11"])
    assert "invalid choice: 11" in capsys.readouterr().err


def test_it_is_a_module_of_the_checkout():
    done = python("-m", "bench.experiments.sharing", "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "continues" in done.stdout


@pytest.mark.slow
def test_all_is_trained_scored_drawn_and_reported_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sharing, "VARIANTS", [OWN, Variant(2, False, "copy")])
    drawn = sharing.builtin.demo_root
    monkeypatch.setattr(sharing.builtin, "demo_root", lambda **keys: drawn(n_train=8, **keys))
    monkeypatch.setattr(sharing, "_contrasts", lambda: {"x": ([OWN], [OWN])})
    shared = ["--out", str(tmp_path), "--iterations", "1", "--seeds", "2"]
    assert sharing.main([*shared, "--jobs", "2"]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(sharing.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    assert sharing.main([*shared, "--report"]) == 0
    assert capsys.readouterr().out == first == (tmp_path / "sharing.md").read_text("utf-8")
    with sharing.grid.Image.open(tmp_path / "sharing.png") as picture:
        assert picture.height == 4 * (64 + 24) + 4
