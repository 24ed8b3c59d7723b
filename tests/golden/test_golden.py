"""Every `unit_*` golden case: forward, gradients, losses and parameters after all steps.

One case lies here, release.json and release.npz, so that any clone can be held to the release's
numbers; it has initial parameters, images, noise, forward values and the losses of two steps. The
recorded gradients and final parameters, and the other cases, are in ../shared/golden.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastunit.compat import ATTRIBUTES, UNIT_Trainer

HERE = Path(__file__).parent
CASES = ("unit_lsgan_reflect", "unit_nsgan_zero_lrelu_rect")
NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")
FORWARD, GRADIENT = 1e-9, 1e-7  # relative, from golden/README.md


class Case:
    """A golden case and a trainer that starts from its parameters, in float64."""

    def __init__(self, meta: dict, arrays: dict[str, np.ndarray], whole: bool = True) -> None:
        self.meta, self.arrays, self.whole = meta, arrays, whole
        self.trainer = UNIT_Trainer(meta["config"]).double()
        for name in NETWORKS:
            getattr(self.trainer, name).load_state_dict(self.group(f"init/{name}."))
        self.x_a, self.x_b = self.tensor("x_a"), self.tensor("x_b")

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: self.tensor(k) for k in self.arrays if k.startswith(prefix)}


@pytest.fixture(params=("here", *CASES))
def case(request) -> Case:
    if request.param != "here":
        return Case(*request.getfixturevalue("load_golden")(request.param))
    meta = json.loads((HERE / "release.json").read_text(encoding="utf-8"))
    with np.load(HERE / "release.npz") as arrays:
        return Case(meta, dict(arrays), whole=False)


def assert_close(mine, reference, limit, name, scale=None):
    """Assert the largest error relative to the reference's largest value (or to `scale`)."""
    assert mine.shape == reference.shape, name
    scale = reference.abs().max() if scale is None else scale
    error = ((mine - reference).abs().max() / scale).item()
    assert error < limit, f"{name}: relative error {error:.2e}"


def test_state_dict_keys(case):
    for name in NETWORKS:
        golden = case.group(f"init/{name}.")
        mine = getattr(case.trainer, name).state_dict()
        assert list(mine) == list(golden)
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in golden.items()}


def test_forward(case):
    trainer = case.trainer.eval()
    with torch.no_grad():
        hidden = trainer.gen_a.encode(case.x_a)[0]
        outputs = {
            "hidden_a": hidden,
            "recon_a": trainer.gen_a.decode(hidden),
            "x_ab": trainer(case.x_a, case.x_b)[0],
            "x_ba": trainer(case.x_a, case.x_b)[1],
        }
        outputs |= {f"dis_a.{i}": out for i, out in enumerate(trainer.dis_a(case.x_a))}
    golden = case.group("forward/")
    assert golden.keys() == outputs.keys()
    for name, reference in golden.items():
        assert_close(outputs[name], reference, FORWARD, name)


def check_gradients(case, update, networks):
    checked = 0
    for network in networks:
        golden = case.group(f"step0/grad.{update}/{network}.")
        if not golden and not case.whole:
            return
        # A bias before instance norm has no effect; its recorded gradient is rounding noise, so
        # gradients are judged against the largest of their network where they are that small.
        largest = max(value.abs().max() for value in golden.values())
        mine = dict(getattr(case.trainer, network).named_parameters())
        assert golden.keys() == mine.keys()
        for name, reference in golden.items():
            own = reference.abs().max()
            scale = largest if own < 1e-12 * largest else own
            assert_close(mine[name].grad, reference, GRADIENT, f"{network}.{name}", scale)
            checked += 1
    assert checked


def check_losses(case, step):
    for name, reference in case.meta["losses"][step].items():
        mine = float(getattr(case.trainer, name))
        assert mine == pytest.approx(reference, rel=FORWARD, abs=0), name
    assert set(case.meta["losses"][step]) == set(ATTRIBUTES.values())


def test_training_steps(case):
    trainer = case.trainer
    for step in range(case.meta["steps"]):
        trainer.update_learning_rate()
        noise = case.group(f"step{step}/noise.dis.")
        trainer.dis_update(case.x_a, case.x_b, case.meta["config"], noise=noise)
        if step == 0:
            check_gradients(case, "dis_update", ("dis_a", "dis_b"))
        noise = case.group(f"step{step}/noise.gen.")
        trainer.gen_update(case.x_a, case.x_b, case.meta["config"], noise=noise)
        if step == 0:
            check_gradients(case, "gen_update", ("gen_a", "gen_b"))
        check_losses(case, step)
    for name in NETWORKS:
        final = case.group(f"final/{name}.")
        assert bool(final) == case.whole
        for key, reference in final.items():
            mine = getattr(trainer, name).state_dict()[key]
            # Adam turns the rounding noise in a cancelled bias's gradient into a millionth of a
            # step; one full step (lr) is the smallest scale a parameter is judged on.
            scale = max(reference.abs().max().item(), case.meta["config"]["lr"])
            assert_close(mine, reference, GRADIENT, f"{name}.{key}", scale)
