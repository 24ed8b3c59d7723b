"""What the ablations of the training step switch off."""

from __future__ import annotations

import pytest

from bench.step import ablations
from bench.step.contenders import Contender
from fastunit import config
from fastunit.common.errors import ConfigError


def test_every_saving_can_be_switched_off_by_keys_that_exist():
    for name in ablations.ABLATIONS | ablations.GPU_ABLATIONS:
        keys = (ablations.ABLATIONS | ablations.GPU_ABLATIONS)[name].keys
        assert config.resolve({}, keys, {}) != config.from_dict({}) or not keys
    with pytest.raises(ConfigError):
        config.resolve({}, ["share_fake=false"], {})


def test_what_is_off_by_default_is_switched_on_by_name(monkeypatch):
    switched = list(ablations.ADDITIONS.values())
    assert len(switched) == 2
    for module in switched:
        monkeypatch.setattr(module, "ON", False)
    ablations.add(Contender("fastunit", config.from_dict({})).added)
    assert not any(module.ON for module in switched)
    for count, name in enumerate(ablations.ADDITIONS, start=1):
        ablations.add([name])
        assert sum(module.ON for module in switched) == count
