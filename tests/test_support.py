"""What the helpers of tests leave behind."""

from __future__ import annotations

import os

import pytest
import torch
from torch._inductor import config as inductor
from torch.utils._device import _device_constructors

from tests.support.poison import poisoned_memory
from tests.support.processes import compiler_processes


def test_poisoned_memory_leaves_devices_given_by_a_context_alone():
    _device_constructors.cache_clear()
    with poisoned_memory(), torch.device("meta"):
        assert torch.empty(2).is_meta
    with torch.device("meta"):
        assert torch.empty(2).is_meta


@pytest.mark.parametrize(("workers", "cores", "each"), [(8, 16, 2), (1, 16, 16), (4, 2, 1)])
def test_compilers_share_the_cores_among_pytests_workers(workers, cores, each):
    assert compiler_processes(workers, cores) == each


def test_the_compiler_starts_as_many_processes_as_it_may():
    assert inductor.compile_threads == int(os.environ["TORCHINDUCTOR_COMPILE_THREADS"])
