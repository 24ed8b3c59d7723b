"""What the ablations of the training step switch off."""

from __future__ import annotations

import pytest

from bench.step import ablations
from fastunit import config
from fastunit.common.errors import ConfigError


def test_every_saving_can_be_switched_off_by_keys_that_exist():
    for name in ablations.ABLATIONS | ablations.GPU_ABLATIONS:
        keys = (ablations.ABLATIONS | ablations.GPU_ABLATIONS)[name].keys
        assert config.resolve({}, keys, {}) != config.from_dict({}) or not keys
    with pytest.raises(ConfigError):
        config.resolve({}, ["share_fake=false"], {})
