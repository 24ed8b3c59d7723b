"""UNIT's networks and a whole training step on the Triton kernels, as good as PyTorch in float32.

Both implementations run the golden cases in float32; their distances from the recorded float64
numbers are compared. The generators' gradients follow the discriminators' own update.
"""

from __future__ import annotations

import pytest
import torch

from fastunit.compat import UNIT_Trainer
from fastunit.kernels.common.runtime import default_impl

CASES = ("unit_lsgan_reflect", "unit_nsgan_zero_lrelu_rect")
NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")
FORWARD, GRADIENT = 2e-5, 1e-3  # relative to the largest value; where PyTorch does better


def group(arrays, prefix):
    found = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    return {name: torch.from_numpy(value).float() for name, value in found.items()}


def translate(trainer, _config, arrays):
    x_a, x_b = (torch.from_numpy(arrays[name]).float() for name in ("x_a", "x_b"))
    with torch.no_grad():
        hidden = trainer.gen_a.encode(x_a)[0]
        x_ab, x_ba = trainer(x_a, x_b)
        outputs = {"hidden_a": hidden, "recon_a": trainer.gen_a.decode(hidden)}
        outputs |= {f"dis_a.{i}": out for i, out in enumerate(trainer.dis_a(x_a))}
    return outputs | {"x_ab": x_ab, "x_ba": x_ba}


def step(trainer, config, arrays):
    """Take the first training step; return the gradients of both updates, and the parameters."""
    x_a, x_b = (torch.from_numpy(arrays[name]).float() for name in ("x_a", "x_b"))
    trainer.update_learning_rate()
    gradients = {}
    for update, names in (("dis", NETWORKS[2:]), ("gen", NETWORKS[:2])):
        run = getattr(trainer, f"{update}_update")
        run(x_a, x_b, config, noise=group(arrays, f"step0/noise.{update}."))
        for name in names:
            for key, parameter in getattr(trainer, name).named_parameters():
                gradients[f"{update}_update/{name}.{key}"] = parameter.grad.clone()
    return gradients


def both(load_golden, case, run):
    """Return what `run` gives of a golden case's networks by ATen, and by Triton in pairs."""
    meta, arrays = load_golden(case)
    found = []
    for impl, paired in (("aten", "off"), ("triton", "on")):
        trainer = UNIT_Trainer(meta["config"] | {"pair_domains": paired})
        for name in NETWORKS:
            getattr(trainer, name).load_state_dict(group(arrays, f"init/{name}."))
        with default_impl(impl):
            found.append(run(trainer, meta["config"], arrays))
    return found


def errors(exact, mine):
    """Return the largest error of each value, relative to the largest of its network's."""
    assert exact.keys() == mine.keys()
    exact = {name: torch.from_numpy(value) for name, value in exact.items()}
    scale = {}
    for name, value in exact.items():
        network = name.split(".")[0]
        scale[network] = max(scale.get(network, 0.0), value.abs().max().item())
    return {
        name: ((mine[name] - value).abs().max() / scale[name.split(".")[0]]).item()
        for name, value in exact.items()
    }


def assert_as_good(exact, aten, triton, floor):
    theirs, mine = errors(exact, aten), errors(exact, triton)
    for name, error in mine.items():
        assert error <= max(2 * theirs[name], floor), name


@pytest.mark.parametrize("case", CASES)
def test_forward(load_golden, case):
    aten, triton = both(load_golden, case, translate)
    _, arrays = load_golden(case)
    exact = {k[8:]: v for k, v in arrays.items() if k.startswith("forward/")}
    assert_as_good(exact, aten, triton, FORWARD)


def test_the_gradients_of_a_training_step(load_golden):
    aten, triton = both(load_golden, CASES[0], step)
    _, arrays = load_golden(CASES[0])
    exact = {k[11:]: v for k, v in arrays.items() if k.startswith("step0/grad.")}
    assert_as_good(exact, aten, triton, GRADIENT)
