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
from tests.support.golden import CASES, FORWARD, NETWORKS, Golden

HERE = Path(__file__).parent


class Case(Golden):
    """A golden case and a trainer that starts from its parameters, in float64."""

    def __init__(self, meta: dict, arrays: dict[str, np.ndarray], whole: bool = True) -> None:
        super().__init__(meta, arrays)
        self.whole, self.trainer = whole, UNIT_Trainer(meta["config"]).double()
        self.load_initial(self.trainer)


@pytest.fixture(params=("here", *CASES))
def case(request) -> Case:
    if request.param != "here":
        return Case(*request.getfixturevalue("load_golden")(request.param))
    meta = json.loads((HERE / "release.json").read_text(encoding="utf-8"))
    with np.load(HERE / "release.npz") as arrays:
        return Case(meta, dict(arrays), whole=False)


def test_state_dict_keys(case):
    for name in NETWORKS:
        golden = case.group(f"init/{name}.")
        mine = getattr(case.trainer, name).state_dict()
        assert list(mine) == list(golden)
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in golden.items()}


def test_forward(case):
    trainer, (x_a, x_b) = case.trainer.eval(), case.images
    with torch.no_grad():
        hidden = trainer.gen_a.encode(x_a)[0]
        outputs = {
            "hidden_a": hidden,
            "recon_a": trainer.gen_a.decode(hidden),
            "x_ab": trainer(x_a, x_b)[0],
            "x_ba": trainer(x_a, x_b)[1],
        }
        outputs |= {f"dis_a.{i}": out for i, out in enumerate(trainer.dis_a(x_a))}
    case.assert_forward(outputs)


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
        trainer.dis_update(*case.images, case.meta["config"], noise=noise)
        if step == 0 and case.whole:
            case.assert_gradients(trainer, "dis_update", ("dis_a", "dis_b"))
        noise = case.group(f"step{step}/noise.gen.")
        trainer.gen_update(*case.images, case.meta["config"], noise=noise)
        if step == 0 and case.whole:
            case.assert_gradients(trainer, "gen_update", ("gen_a", "gen_b"))
        check_losses(case, step)
    if case.whole:
        case.assert_final(trainer)
