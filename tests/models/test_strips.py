"""Strips of a picture against the whole picture: the same numbers, whatever the strips' height."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastunit import config
from fastunit.models import strips
from fastunit.models.domain_pair import DomainPair
from fastunit.models.strips import Strips
from fastunit.models.unit import networks

RELEASE = {"gen": {"dim": 4, "n_res": 2, "n_downsample": 2}}
NETWORKS = {
    "release": RELEASE,
    "zero padding": {"gen": RELEASE["gen"] | {"pad_type": "zero", "activ": "lrelu"}},
    "replicate, selu": {"gen": RELEASE["gen"] | {"pad_type": "replicate", "activ": "selu"}},
    "no blocks": {"gen": {"dim": 4, "n_res": 0, "n_downsample": 1}},
    "not halved": {"gen": {"dim": 4, "n_res": 1, "n_downsample": 0}},
    "paper": {"network": "paper", "paper": {"gen": {"ch": 4}}},
    "paper, no norms": {
        "network": "paper",
        "paper": {"gen": {"ch": 4, "name": "COCOResGen2"}},
    },
    "other channels": RELEASE | {"input_dim_a": 5, "input_dim_b": 1},
}


def pair_of(keys: dict, dtype: torch.dtype = torch.float64) -> DomainPair:
    pair = networks(config.from_dict(keys)).to(dtype).eval()
    for name, parameter in pair.named_parameters():  # biases and scales that can be seen
        if name.endswith(("bias", "beta", "gamma")):
            nn.init.normal_(parameter, 0.5)
    return pair


def by_strips(pair: DomainPair, x: Tensor, direction: str, rows: int | None, files: bool) -> Tensor:
    found = {}
    with torch.no_grad():
        Strips(pair, direction).translate(
            lambda start, stop: x[:, :, start:stop],
            tuple(x.shape[2:]),
            lambda start, y: found.update({start: y.clone()}),
            rows=rows,
            files=files,
        )
    assert list(found) == sorted(found)
    return torch.cat([*found.values()], 2)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("rows", "files"), [(1, False), (24, True), (None, False)])
def test_strips_are_the_whole_picture(name, rows, files):
    pair = pair_of(NETWORKS[name])
    for direction, size in (("a2b", (61, 37)), ("b2a", (88, 20))):
        x = torch.rand(1, pair.along(direction)[0].input_dim, *size, dtype=torch.float64) * 2 - 1
        with torch.no_grad():
            whole = pair.translate(x, direction)
        found = by_strips(pair, x, direction, rows, files)
        assert found.shape == whole.shape
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-11)


def test_each_row_is_computed_from_its_true_neighbours():
    """Without the rows beyond a strip there would be seams: this test could see them."""
    pair = pair_of(RELEASE)
    x = torch.rand(1, 3, 64, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        whole = pair.translate(x, "a2b")
        apart = torch.cat([pair.translate(part, "a2b") for part in x.split(32, 2)], 2)
    assert (apart - whole).abs().max() > 0.01
    assert (by_strips(pair, x, "a2b", 32, False) - whole).abs().max() < 1e-11


def test_seams_in_float32_are_less_than_a_grey_level_of_noise_makes():
    pair = pair_of(RELEASE, torch.float32)
    x = torch.rand(1, 3, 96, 64) * 2 - 1
    with torch.no_grad():
        whole = pair.translate(x, "a2b")
        noisy = pair.translate(x + torch.randn_like(x) / 127.5, "a2b")
    found = by_strips(pair, x, "a2b", 16, False)
    assert (found - whole).abs().max() < 1e-5 < (noisy - whole).abs().mean() / 100


def test_the_bytes_that_are_kept_are_those_of_the_levels(monkeypatch):
    made, live = [], [0]

    class Counted(strips.MemoryLevel):
        def __init__(self, shape, dtype, device) -> None:
            super().__init__(shape, dtype, device)
            self.size = self._rows.nbytes
            live[0] += self.size
            made.append(live[0])

        def __del__(self) -> None:
            live[0] -= self.size

    monkeypatch.setattr(strips, "MemoryLevel", Counted)
    pair = pair_of(RELEASE)
    x = torch.zeros(1, 3, 30, 21, dtype=torch.float64)
    by_strips(pair, x, "a2b", 8, False)
    assert max(made) == Strips(pair, "a2b").kept_bytes(30, 21, 8) and live[0] == 0


def test_layers_that_are_no_fused_operation_are_refused():
    with pytest.raises(ValueError, match="Conv2dBlock is no fused operation"):
        Strips(pair_of({"gen": RELEASE["gen"] | {"activ": "prelu"}}), "a2b")
    pair = pair_of(RELEASE)
    pair.gen_a.enc.model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="no fused operation"):
        Strips(pair, "a2b")
    Strips(pair, "b2a")
