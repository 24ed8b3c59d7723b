"""Files in the release's layout that do not fit are refused, naming what does not."""

from __future__ import annotations

import pytest
import torch

from fastunit.common import files
from fastunit.common.errors import CheckpointError
from fastunit.config import from_dict
from fastunit.models.unit import UNIT
from fastunit.training import release_files


@pytest.fixture
def unit(tiny) -> UNIT:
    return UNIT(from_dict(tiny | {"share": {"enc": 0, "dec": 0}}))


@pytest.fixture
def saved(unit, tmp_path):
    """Save the networks as iteration 7 and return their folder."""
    release_files.save_networks(unit, tmp_path, 7)
    return tmp_path


def change(path, edit):
    """Rewrite a file with its content changed in place."""
    content = files.read(path)
    edit(content)
    files.save(content, path)


def test_both_files_are_read_back(saved, tiny):
    other = UNIT(from_dict(tiny | {"share": {"enc": 0, "dec": 0}}))
    for kind in ("gen", "dis"):
        path = saved / f"{kind}_00000007.pt"
        release_files.load_networks(other, path, expect=kind)
        for domain, state in files.read(path).items():
            mine = getattr(other, f"{kind}_{domain}").state_dict()
            assert mine.keys() == state.keys()
            assert all(torch.equal(mine[key], state[key]) for key in mine)


def test_the_other_kind_is_refused(unit, saved):
    with pytest.raises(CheckpointError, match=r"gen_00000007\.pt holds gen .* but dis ones"):
        release_files.load_networks(unit, saved / "gen_00000007.pt", expect="dis")


KEY = "enc.model.0.conv.weight"
MISFITS = {
    "missing": (lambda s: s["b"].pop(KEY), rf"\(b\) .*{KEY} is missing"),
    "foreign": (lambda s: s["a"].update(x=torch.ones(1)), r"\(a\) .*x is not one of the network's"),
    "shape": (
        lambda s: s["b"].update({KEY: torch.ones(4, 3, 5, 5)}),
        rf"\(b\) .*{KEY} is of shape \(4, 3, 5, 5\), the network's is \(4, 3, 7, 7\)",
    ),
    "not a tensor": (lambda s: s["a"].update({KEY: 3}), rf"\(a\) .*{KEY} is not a tensor"),
    "one domain": (lambda s: s.pop("b"), "does not hold the two domains 'a' and 'b'"),
    "no networks": (lambda s: s.update(a=1, b=2), "does not hold the two domains 'a' and 'b'"),
    "empty": (lambda s: s.update(a={}, b={}), r"\(a\) .*is missing.*\(and \d+ more\)"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_is_named(misfit, unit, saved):
    edit, message = MISFITS[misfit]
    path = saved / "gen_00000007.pt"
    change(path, edit)
    torch.nn.init.ones_(unit.gen_a.get_parameter(KEY))
    with pytest.raises(CheckpointError, match=rf"gen_00000007\.pt.*{message}"):
        release_files.load_networks(unit, path, expect="gen")
    assert (unit.gen_a.get_parameter(KEY) == 1).all()  # nothing is half loaded


def test_a_list_is_no_checkpoint(unit, tmp_path):
    files.save([1, 2], tmp_path / "gen_00000001.pt")
    with pytest.raises(CheckpointError, match="does not hold the two domains"):
        release_files.load_networks(unit, tmp_path / "gen_00000001.pt", expect="gen")


def test_different_values_for_shared_blocks_are_refused(saved, tiny):
    path = saved / "gen_00000007.pt"
    with pytest.raises(CheckpointError, match=r"different values of .*set share\.enc and"):
        release_files.load_networks(UNIT(from_dict(tiny)), path, expect="gen")


def test_equal_values_for_shared_blocks_are_loaded(tiny, tmp_path):
    unit, other = (UNIT(from_dict(tiny)) for _ in range(2))
    release_files.save_networks(unit, tmp_path, 1)
    release_files.load_networks(other, tmp_path / "gen_00000001.pt", expect="gen")
    assert other.gen_a.dec.res_blocks[0] is other.gen_b.dec.res_blocks[0]
    mine, wanted = other.gen_b.state_dict(), unit.gen_b.state_dict()
    assert all(torch.equal(mine[key], wanted[key]) for key in wanted)
