"""The command line of adaptation: what it leaves, what it refuses, and what it never reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit import adapt
from fastunit.common import files
from fastunit.digits.networks import CoDis32x32, CoVAE32x32


def test_a_run_leaves_result_checkpoint_records_and_pictures(command):
    code, out, _ = command("--seed", 5)
    run = Path("runs/adapt-mnist-usps")
    assert code == 0 and str(run) in out
    result = json.loads((run / "result.json").read_text())
    assert result["method"] == "adapted" and result["iteration"] == 3
    assert (result["source"], result["target"]) == ("mnist", "usps")
    assert result["source_tests"] == result["target_tests"] == 14
    assert f"{result['target_accuracy']:.4f} of the target's 14" in out
    assert result["settings"]["seed"] == 5 and result["settings"]["gen_ch"] == 2
    assert result["environment"]["versions"]["torch"] == torch.__version__
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [1, 2, 3]
    assert ["target_accuracy" in record for record in records] == [False, True, True]
    assert records[-1]["target_accuracy"] == result["target_accuracy"]
    for name in ("curves.png", "samples.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 300
    assert not list(run.rglob("*.tmp*"))


def test_the_checkpoint_gives_the_accuracy_again(command):
    command("--source", "svhn", "--target", "mnist", "--output", "run")
    state = files.read(Path("run/checkpoint.pt"))
    assert state["channels"] == 3  # MNIST's are repeated
    CoVAE32x32(2, 3, 3, 3, 3).load_state_dict(state["gen"])
    judge = CoDis32x32(2, 3, 3).eval()
    judge.load_state_dict(state["judge"])
    task = adapt.load_task(
        Path("data"), "svhn", "mnist", adapt.Settings(geometry="box"), torch.device("cpu")
    )
    tests = task.tests["b"]
    assert tests.images.shape == (14, 3, 32, 32)
    assert torch.equal(tests.images[:, 0], tests.images[:, 2])
    with torch.no_grad():
        named = judge.classify_b(tests.images.float() / 127.5 - 1).argmax(1)
    share = (named == tests.labels).float().mean().item()
    result = json.loads(Path("run/result.json").read_text())
    assert result["target_accuracy"] == pytest.approx(share)


def networks(run: str) -> dict[str, torch.Tensor]:
    state = files.read(Path(run) / "checkpoint.pt")
    return {f"{n}.{k}": v for n in ("gen", "dis", "judge") for k, v in state[n].items()}


OPTIONS = {
    "plain": (),
    "self-labels": ("self_label_w=2", "self_label_threshold=0", "ema_decay=0.5"),
    "held out": ("self_label_w=1", "self_label_threshold=0.1", "holdout=0.3"),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_training_reads_no_label_of_the_target(options, command, folder, save_digits):
    sets = [word for key in OPTIONS[options] for word in ("--set", key)]
    command("--output", "one", *sets)
    noise = np.random.default_rng(9).integers(0, 10, 14).astype(np.uint8)
    for split in ("train", "test"):
        with np.load(folder / f"usps_{split}.npz") as arrays:
            images = arrays["images"]
        save_digits(folder, "usps", split, images=images, labels=noise)
    command("--output", "two", *sets)
    one, two = networks("one"), networks("two")
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    save_digits(folder, "mnist", "train", labels=noise)  # the source's labels do matter
    command("--output", "three", *sets)
    assert not torch.equal(one["dis.conv_cl.weight"], networks("three")["dis.conv_cl.weight"])


def test_what_is_held_out_of_the_source_is_measured_and_not_trained_on(command, folder):
    assert command("--set", "holdout=0.5", "--output", "half")[0] == 0
    result = json.loads(Path("half/result.json").read_text())
    records = [json.loads(line) for line in Path("half/metrics.jsonl").read_text().splitlines()]
    assert result["held_out_count"] == 7
    assert records[-1]["held_out_accuracy"] == result["held_out_accuracy"]
    assert result["held_out_accuracy"] * 7 == pytest.approx(round(result["held_out_accuracy"] * 7))
    settings = adapt.Settings(holdout=0.5)
    task = adapt.load_task(folder, "mnist", "usps", settings, torch.device("cpu"))
    whole = adapt.load_task(folder, "mnist", "usps", adapt.Settings(), torch.device("cpu"))
    assert whole.held_out is None
    parts = [task.source, task.held_out]
    assert [len(part.images) == len(part.labels) == 7 for part in parts] == [True, True]
    both = torch.cat([part.images for part in parts]).flatten(1)
    rows = [(both == image).all(1).nonzero() for image in whole.source.images.flatten(1)]
    assert sorted(int(row) for row in rows) == list(range(14))  # every image, once
    labels = torch.cat([part.labels for part in parts])
    assert [int(labels[int(row)]) for row in rows] == whole.source.labels.tolist()
    command("--output", "all")
    assert "held_out_accuracy" not in json.loads(Path("all/result.json").read_text())


def test_labels_held_out_train_nothing(command, folder, save_digits):
    command("--set", "holdout=0.5", "--output", "one")
    settings = adapt.Settings(holdout=0.5)
    task = adapt.load_task(folder, "mnist", "usps", settings, torch.device("cpu"))
    with np.load(folder / "mnist_train.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    prepared = adapt.load_task(folder, "mnist", "usps", adapt.Settings(), torch.device("cpu"))
    for image in task.held_out.images:
        (row,) = (prepared.source.images == image).flatten(1).all(1).nonzero()[0]
        labels[row] = 9 - labels[row]
    save_digits(folder, "mnist", "train", images=images, labels=labels)
    command("--set", "holdout=0.5", "--output", "two")
    one, two = networks("one"), networks("two")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_settings_can_be_chosen_on_the_source_alone(command, folder):
    for name in ("usps", "svhn"):
        for split in ("train", "test"):
            (folder / f"{name}_{split}.npz").unlink()
    shifted = ("--target", "shifted", "--set", "holdout=0.5")
    code, _, err = command(*shifted)
    assert code == 0, err
    result = json.loads(Path("runs/adapt-mnist-shifted/result.json").read_text())
    assert (result["target"], result["target_tests"], result["held_out_count"]) == ("shifted", 4, 7)
    settings = adapt.Settings(holdout=0.5, geometry="pad")
    task = adapt.load_task(folder, "mnist", "shifted", settings, torch.device("cpu"))
    again = adapt.load_task(folder, "mnist", "shifted", settings, torch.device("cpu"))
    assert torch.equal(task.target, again.target) and len(task.target) == 3
    assert torch.equal(task.tests["b"].labels, task.held_out.labels[3:])
    own, moved = task.held_out.images.float(), torch.cat([task.target, task.tests["b"].images])
    assert own.shape == moved.shape and moved.dtype == torch.uint8
    assert ((own - moved.float()).flatten(1).abs().mean(1) > 1).all()


@pytest.mark.parametrize("share", [0, 0.03, 0.1])  # of 14: none, none, and one
def test_a_target_made_of_nothing(share, command, folder):
    code, _, err = command("--target", "shifted", "--set", f"holdout={share}")
    assert code == 2 and "made of two or more held-out images" in err and "holdout=0.2" in err


def test_source_only(command):
    code, out, _ = command("--source-only")
    run = Path("runs/adapt-mnist-usps-source-only")
    assert code == 0 and out.splitlines()[-1].startswith("source only, mnist to usps")
    assert json.loads((run / "result.json").read_text())["method"] == "source only"
    assert not (run / "samples.png").exists()
    assert "gen" not in files.read(run / "checkpoint.pt")


def test_records_of_a_warm_up(command):
    assert command("--set", "warmup=2", "--set", "log_every=9", "--set", "test_every=9")[0] == 0
    lines = Path("runs/adapt-mnist-usps/metrics.jsonl").read_text().splitlines()
    warm, last = map(json.loads, lines)
    assert (warm["iteration"], last["iteration"]) == (2, 3)
    assert "adversarial" not in warm and "adversarial" in last


def test_a_weight_of_zero_for_classification(command):
    assert command("--set", "cls_w=0", "--set", "identity_cls_w=1")[0] == 0


def test_a_dry_run_writes_nothing(command, folder):
    code, out, _ = command("--dry-run", "--target", "svhn")
    assert code == 0 and "target: svhn, 14 training digits, 14 test digits" in out
    assert "dis_ch: 2" in out and sorted(Path().iterdir()) == [Path("data")]


def test_a_result_is_never_overwritten(command):
    command("--output", "run")
    before = {path: path.read_bytes() for path in Path("run").iterdir() if path.is_file()}
    code, _, err = command("--output", "run")
    assert code == 2 and "output run is not empty; continue that run (--resume)" in err
    assert before == {path: path.read_bytes() for path in before}
    for number in ("", "-2"):  # a name of our own is a free one
        assert command()[0] == 0 and Path(f"runs/adapt-mnist-usps{number}/result.json").exists()


BAD = {
    "no folder": (lambda data, save: ("--data", "nowhere"), "nowhere is not a folder"),
    "the same twice": (lambda data, save: ("--target", "mnist"), "both mnist; choose two"),
    "a missing split": (
        lambda data, save: (data / "usps_test.npz").unlink(),
        "the test split of usps is not in",
    ),
    "a damaged file": (
        lambda data, save: (data / "usps_train.npz").write_bytes(b"PK\3\4 cut"),
        "usps_train.npz is damaged",
    ),
    "labels of eleven": (
        lambda data, save: save(data, "mnist", "train", labels=np.full(14, 11)),
        "label 0 of",
    ),
    "an unknown key": (lambda data, save: ("--set", "gen_chh=3"), "did you mean gen_ch?"),
    "a wrong value": (lambda data, save: ("--iterations", 0), "iterations=0 must be at least 1"),
    "no time to adapt": (lambda data, save: ("--set", "warmup=3"), "warmup=3 leaves none of"),
    "all held out": (lambda data, save: ("--set", "holdout=0.99"), "holdout=0.99 leaves none of"),
    "a start": (lambda data, save: ("--set", "init_b=copied"), "did you mean 'copy'"),
    "no value": (lambda data, save: ("--set", "gen_ch"), "must look like key=value"),
    "broken YAML": (lambda data, save: ("--set", "gen_ch=[1"), "not valid YAML"),
    "no config": (lambda data, save: ("--config", "none.yaml"), "cannot read the configuration"),
    "a device": (lambda data, save: ("--device", "tpu"), "--device tpu must be"),
    "a file as output": (
        lambda data, save: ("--output", data / "usps_test.npz"),
        "usps_test.npz is a file; give a folder",
    ),
    "an output below a file": (
        lambda data, save: ("--output", data / "usps_test.npz" / "run"),
        "usps_test.npz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_leaves_nothing(case, command, folder, save_digits):
    make, words = BAD[case]
    extra = make(folder, save_digits)
    before = sorted(Path().rglob("*"))
    code, out, err = command(*(extra if isinstance(extra, tuple) else ()))
    assert code == 2 and words in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before and not out


def test_training_that_diverges_is_told(command):
    code, _, err = command("--set", "lr=1e9", "--iterations", 40)
    assert code == 1 and "error: " in err and "at iteration" in err
    assert not Path("runs/adapt-mnist-usps/result.json").exists()


def test_the_real_digits(shared, command, tmp_path):
    data = shared / "data" / "digits_mnist_usps"
    argv = ["--data", data, "--output", tmp_path / "run", "--source", "usps", "--target"]
    argv += ["mnist", "--source-only", "--iterations", 120, "--set", "lr=0.003"]
    argv += ["--set", "dis_ch=4", "--set", "batch_size=32", "--set", "test_every=120"]
    assert command(*argv)[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["target_tests"] == 10_000
    assert result["source_accuracy"] > 0.5 and result["target_accuracy"] > 0.4  # chance is 0.1
