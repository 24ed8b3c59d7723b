"""bench/sharing.py: the table, and which runs it takes for what."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from bench import sharing
from bench.sharing import Run
from fastunit import config, files
from fastunit.errors import UserError


def result(a2b, b2a):
    ways = {"a2b": a2b, "b2a": b2a}
    trivial = {"identity_l1": 0.25, "constant_l1": 0.5, "statistics_l1": 0.75}
    errors = {way: {"paired_l1": error} | trivial for way, error in ways.items()}
    return errors | {"partner_nearest": a2b}


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(out=tmp_path, config="emoji", data="DATA", iterations=7)


def test_the_table_has_means_and_spreads_over_seeds():
    results = {
        Run(0, "unit", 0): result(0.1, 0.2),
        Run(0, "unit", 1): result(0.3, 0.6),
        Run(2, "learned", 0): result(0.5, 0.5),
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sharing.table(results)[2:]]
    assert rows == [
        [
            "share 0/0, unit",
            "2",
            "0.200 ± 0.141",
            "0.400 ± 0.283",
            "0.300 ± 0.212",
            "0.150, 0.450",
            "0.200 ± 0.141",
        ],
        ["share 2/2, learned", "1", "0.500", "0.500", "0.500", "0.500", "0.500"],
        ["unchanged input", "-", "0.250", "0.250", "0.250", "-", "-"],
        ["constant picture", "-", "0.500", "0.500", "0.500", "-", "-"],
        ["position statistics", "-", "0.750", "0.750", "0.750", "-", "-"],
    ]


def test_a_run_is_trained_with_its_own_settings(args):
    run = Run(1, "learned", 5)
    command = run.command(args)
    (path,) = (word.removeprefix("--config=") for word in command if "--config=" in word)
    settings = config.load(path)
    assert (settings.share.enc, settings.share.dec, settings.latent) == (1, 1, "learned")
    assert (settings.seed, settings.max_iter, settings.data_root) == (5, 7, "DATA")
    assert f"--output={run.folder(args.out)}" in command


def test_a_finished_run_is_not_repeated_and_one_of_other_settings_is_refused(args, monkeypatch):
    run = Run(0, "unit", 0)
    monkeypatch.setattr(sharing.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    files.write_text(config.dump_yaml(run.settings(args)), run.folder(args.out) / "config.yaml")
    files.write_text(json.dumps(result(0, 0)), run.folder(args.out) / "result.json")
    sharing._train(run, args)
    args.iterations = 8
    with pytest.raises(UserError, match="holds a run of other settings; choose another --out"):
        sharing._train(run, args)


def test_what_was_stopped_before_a_checkpoint_is_begun_anew(args, monkeypatch):
    run, begun = Run(0, "unit", 0), []
    files.write_text("", run.folder(args.out) / "metrics.jsonl")
    done = SimpleNamespace(returncode=2, stderr="no such folder")
    monkeypatch.setattr(sharing.subprocess, "run", lambda c, **_: begun.append(c) or done)
    with pytest.raises(UserError, match="ended with 2: no such folder"):
        sharing._train(run, args)
    assert not run.folder(args.out).exists() and len(begun) == 1


def test_images_without_pairs_are_refused_before_training(photos, tmp_path, capsys):
    for file in (photos / "testB").iterdir():
        file.rename(file.with_name(f"other-{file.name}"))
    assert sharing.main([str(photos), "--out", str(tmp_path / "out")]) == 2
    assert "has no pairs in testA and testB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_partners_are_found_by_their_codes():
    z = torch.randn(4, 2, 3, 3)
    assert sharing.nearest(z, z + 0.01) == 1
    assert sharing.nearest(z, z[[0, 1, 3, 2]]) == 0.5
