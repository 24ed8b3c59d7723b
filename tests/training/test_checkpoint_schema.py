"""A checkpoint's state is checked as a whole: everything wrong is one message."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from fastunit.common.errors import CheckpointError
from fastunit.config import from_dict
from fastunit.training.state import TrainState

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def good() -> tuple[dict, dict]:
    """Return a configuration and the state of a run of two iterations of it."""
    small = {
        "gen": {"dim": 4, "n_downsample": 1, "n_res": 1},
        "dis": {"dim": 4, "n_layer": 1, "num_scales": 1},
        "crop_image_height": 16, "crop_image_width": 16, "ema_decay": 0.5,
    }  # fmt: skip
    session = TrainState(from_dict(small), CPU)
    for _ in range(2):
        session.advance(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    return small, session.state()


def change(path: str, value: object = None, *, delete: bool = False):
    """Return a function that sets or deletes an entry; * is the first key of a mapping."""

    def apply(state: dict) -> None:
        *parents, last = path.split("/")
        for name in parents:
            state = state[next(iter(state)) if name == "*" else name]
        last = next(iter(state)) if last == "*" else last
        if delete:
            del state[last]
        else:
            state[last] = value(state[last]) if callable(value) else value

    return apply


KEYS = ("iteration", "config", "unit", "step", "ema", "ema_updates", "random", "positions")
KEYS += ("files", "spent")
VALUES = (
    None,
    True,
    -1,
    math.nan,
    "x",
    b"x",
    [],
    [1],
    {"a": 1},
    {1: 2},
    torch.zeros(2),
    10**30,
)
WRONG = {
    "no moments": change("step/gen_opt/state", {}),
    "moments without a mean": change("step/gen_opt/state/*/exp_avg", delete=True),
    "moments of NaN": change("step/dis_opt/state/*/exp_avg_sq", lambda x: x * math.nan),
    "moments below 0": change("step/dis_opt/state/*/exp_avg_sq", lambda x: x - 1),
    "moments of another shape": change("step/gen_opt/state/*/exp_avg", torch.zeros(3)),
    "steps of NaN": change("step/gen_opt/state/*/step", torch.tensor(math.nan)),
    "groups of text": change("step/gen_opt/param_groups", "x"),
    "optimizer of text": change("step/gen_opt", "x"),
    "no optimizer": change("step/dis_opt", delete=True),
    "integers": change("unit/*", lambda x: x.long()),
    "complex": change("unit/*", lambda x: x.to(torch.complex64)),
    "sparse": change("unit/*", lambda x: x.to_sparse()),
    "huge": change("unit/*", lambda x: x * 0 + 1e30),
    "NaN": change("unit/*", lambda x: x * math.nan),
    "overlapping": change("unit/*", lambda x: torch.zeros(1).expand(x.shape)),
    "a list": change("unit/*", [1.0]),
    "average of NaN": change("ema/*", lambda x: x * math.nan),
    "average that lacks one": change("ema/*", delete=True),
    "random of floats": change("random/cpu", torch.zeros(5000)),
    "random, short": change("random/cpu", torch.zeros(7, dtype=torch.uint8)),
    "samples below 0": change("positions/a", -1),
    "no domain b": change("files/b", delete=True),
    "configuration of others": change("config/gen", {"dim": 10**30}),
}


def restore(small: dict, state: dict) -> None:
    TrainState(from_dict(small), CPU).restore(state, "x.pt")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_entries_are_refused(good, name):
    small, state = good
    state = copy.deepcopy(state)
    restore(small, state)
    WRONG[name](state)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        restore(small, state)


@pytest.mark.parametrize("key", KEYS)
def test_entries_of_other_types_are_refused(good, key):
    small, state = good
    session = TrainState(from_dict(small), CPU)
    for value in VALUES:
        if key == "ema" and value is None:  # there is none
            continue
        with pytest.raises(CheckpointError):
            session.restore({**state, key: value}, "x.pt")
    with pytest.raises(CheckpointError, match=f"x.pt has no {key}"):
        session.restore({name: value for name, value in state.items() if name != key}, "x.pt")
