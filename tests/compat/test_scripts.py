"""Scripts that import the release's modules by name run on ours, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from fastunit.compat import UNIT_Trainer
from tests.support.checkout import ROOT

KEYS = {
    "batch_size": 1, "lr_policy": "step", "step_size": 5, "gamma": 0.5, "vgg_w": 0, "max_iter": 2,
    "gen": {"dim": 4, "mlp_dim": 16, "style_dim": 8, "n_downsample": 2, "n_res": 1},
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 1},
    "new_size": 20, "crop_image_height": 16, "crop_image_width": 16, "num_workers": 0,
}  # fmt: skip

TRAIN = """
import argparse
import os
import sys

import tensorboardX
import torch
import torch.backends.cudnn as cudnn

from trainer import MUNIT_Trainer, UNIT_Trainer
from utils import Timer, get_all_data_loaders, get_config, prepare_sub_folder, write_2images
from utils import write_html, write_loss

arguments = argparse.ArgumentParser()
arguments.add_argument("--config")
arguments.add_argument("--resume", action="store_true")
options = arguments.parse_args()
cudnn.benchmark = True
config = get_config(options.config)
config["vgg_model_path"] = "."
trainer = UNIT_Trainer(config)
trainer.cuda()
train_a, train_b, test_a, test_b = get_all_data_loaders(config)
shown = [torch.stack([each.dataset[i] for i in range(2)]).cuda() for each in (test_a, test_b)]
writer = tensorboardX.SummaryWriter("logs")
checkpoints, images = prepare_sub_folder("outputs")
start = iterations = trainer.resume(checkpoints, hyperparameters=config) if options.resume else 0
if start:
    print("Resume from iteration %d" % start)
while iterations < start + config["max_iter"]:
    for a, b in zip(train_a, train_b):
        trainer.update_learning_rate()
        with Timer("Elapsed time in update: %f"):
            trainer.dis_update(a.cuda().detach(), b.cuda().detach(), config)
            trainer.gen_update(a.cuda().detach(), b.cuda().detach(), config)
            torch.cuda.synchronize()
        write_loss(iterations, trainer, writer)
        with torch.no_grad():
            write_2images(trainer.sample(*shown), 2, images, "test_%08d" % (iterations + 1))
        write_html("outputs/index.html", iterations + 1, 1, "images")
        trainer.save(checkpoints, iterations)
        iterations += 1
        if iterations >= start + config["max_iter"]:
            break
"""

TEST = """
import sys

import torch
import torchvision.utils as vutils
from PIL import Image
from torchvision import transforms

from trainer import UNIT_Trainer
from utils import get_config, load_inception, pytorch03_to_pytorch04

config = get_config(sys.argv[1])
trainer = UNIT_Trainer(config)
state = pytorch03_to_pytorch04(torch.load(sys.argv[2]), "UNIT")
trainer.gen_a.load_state_dict(state["a"])
trainer.gen_b.load_state_dict(state["b"])
trainer.cuda()
trainer.eval()
half = (0.5, 0.5, 0.5)
steps = [transforms.Resize(25), transforms.ToTensor(), transforms.Normalize(half, half)]
with torch.no_grad():
    image = transforms.Compose(steps)(Image.open(sys.argv[3]).convert("RGB")).unsqueeze(0).cuda()
    content, _ = trainer.gen_a.encode(image)
    outputs = (trainer.gen_b.decode(content) + 1) / 2.0
    vutils.save_image(outputs.data, "output.jpg", padding=0, normalize=True)
"""


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastunit.compat", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(photos, tmp_path):
    """Return a folder with scripts, a configuration, and modules that must not be imported."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "test.py").write_text(TEST)
    for name in ("trainer", "networks", "utils", "data"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the release needs Lua and CUDA')")
    config = KEYS | {"data_root": str(photos), "input_dim_a": 3, "input_dim_b": 3}
    (tmp_path / "unit.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.slow
def test_training_resuming_and_translating(checkout):
    done = run(checkout, "train.py", "--config", "unit.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Elapsed time in update: ") == 2
    made = {path.name for path in (checkout / "outputs").rglob("*") if path.is_file()}
    assert {"gen_00000002.pt", "dis_00000002.pt", "optimizer.pt", "index.html"} <= made
    assert {"gen_a2b_test_00000001.jpg", "gen_b2a_test_00000002.jpg"} <= made
    with Image.open(checkout / "outputs" / "images" / "gen_a2b_test_00000002.jpg") as image:
        assert image.size == (2 * 16, 3 * 16)
    assert list((checkout / "logs").iterdir())

    again = run(checkout, "train.py", "--config", "unit.yaml", "--resume")
    assert again.returncode == 0, again.stderr
    assert "Resume from iteration 2" in again.stdout
    assert (checkout / "outputs" / "checkpoints" / "gen_00000004.pt").is_file()

    state = torch.load(checkout / "outputs" / "checkpoints" / "gen_00000004.pt")
    state["a"]["enc.model.0.norm.running_mean"] = torch.zeros(4)  # as before PyTorch 0.4
    torch.save(state, checkout / "old.pt")
    photo = next((checkout / "photos" / "testA").iterdir())
    done = run(checkout, "test.py", "unit.yaml", "old.pt", photo)
    assert done.returncode == 0, done.stderr
    with Image.open(checkout / "output.jpg") as image:  # 25x31, which four does not divide
        assert image.size == (28, 24)


def test_what_cannot_run_is_one_message(checkout):
    missing = run(checkout, "train_other.py")
    assert missing.returncode == 2 and missing.stderr == (
        "error: train_other.py is not a file; give the release's train.py or test.py\n"
    )
    (checkout / "unit.yaml").write_text(yaml.safe_dump({"train": {"hyperparameters": {"lr": 1}}}))
    done = run(checkout, "train.py", "--config", "unit.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: this is a configuration of the 2017 release")


def test_an_odd_photograph_is_encoded():
    trainer = UNIT_Trainer(KEYS | {"input_dim_a": 3, "input_dim_b": 3})
    hidden, _ = trainer.gen_a.encode(torch.rand(1, 3, 26, 35))
    assert trainer.gen_b.decode(hidden).shape == (1, 3, 24, 32)
