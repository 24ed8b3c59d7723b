"""The forecast of a training step's memory against the memory that real steps take."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastunit import config, train
from fastunit.kernels.common import runtime
from fastunit.models import live_bytes
from fastunit.models.unit import UNIT
from fastunit.training import memory
from fastunit.training.state import TrainState
from tests.support.processes import python

MIB = 2**20
CPU = torch.device("cpu")
SMALL = {
    "gen": {"dim": 8, "n_res": 2},
    "dis": {"dim": 8, "n_layer": 3},
    "crop_image_height": 64,
    "crop_image_width": 64,
}
# Half the release's width: several hundred MiB, in seconds.
MEASURED = {
    "gen": {"dim": 32},
    "dis": {"dim": 32},
    "crop_image_height": 128,
    "crop_image_width": 128,
    "batch_size": 2,
}

# Prints by how many bytes two steps raise the peak of the process. A small session before
# loads the libraries and starts their threads.
STEPS = f"""
import ctypes, gc, re
import torch
from fastunit import config
from fastunit.training.state import TrainState

def status(field):
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(rf"^{{field}}:\\s*(\\d+) kB", text, re.MULTILINE)[1])

def train(values, steps):
    settings = config.from_dict(values)
    session = TrainState(settings, torch.device("cpu"))
    shape = settings.batch_size, 3, *settings.crop
    images = [torch.rand(shape).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    for _ in range(steps):
        session.advance(*images)

train({SMALL!r}, 2)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
train({MEASURED!r}, 2)
print(status("VmHWM") - before)
"""


def forecast(**changes) -> memory.Forecast:
    return memory.forecast(config.from_dict(SMALL | changes), CPU)


def nbytes(parameters) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


@pytest.fixture(scope="module")
def small() -> memory.Forecast:
    return forecast()


def measured(**environment: str) -> int:
    run = python("-c", STEPS, env=environment)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_it_is_within_15_percent_of_the_peak_of_real_steps():
    expected = memory.forecast(config.from_dict(MEASURED), CPU)
    # With this, glibc gives back whatever is freed, and the process is what is in use.
    assert expected.total == pytest.approx(measured(MALLOC_MMAP_THRESHOLD_="65536"), rel=0.15)
    assert expected.resident == pytest.approx(measured(), rel=0.15)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"precision": "bf16", "checkpoint_activations": True},
        {"precision": "bf16", "pair_domains": "off", "accumulate": 2},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_it_is_within_15_percent_of_the_peak_on_a_gpu(changes):
    device = torch.device("cuda")
    values = {"crop_image_height": 256, "crop_image_width": 256, "batch_size": 2} | changes
    settings = config.from_dict(values | {"compile": "off", "graphs": "off"})
    expected = memory.forecast(settings, device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    session = TrainState(settings, device)
    shape = settings.batch_size * settings.accumulate, 3, *settings.crop
    images = [
        torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    ]
    for _ in range(2):  # the first times tiles, which takes memory of its own
        torch.cuda.reset_peak_memory_stats(device)
        session.advance(*images)
    found = torch.cuda.max_memory_allocated(device) - before
    assert expected.total == pytest.approx(found, rel=0.15)


def test_weights_and_moments_are_counted_to_the_byte(small):
    with torch.device("meta"):
        unit = UNIT(config.from_dict(SMALL))
    parameters = list(unit.parameters())
    assert small.weights == nbytes(parameters)
    counts_of_steps = 4 * len(parameters)
    assert small.optimizer == 2 * small.weights + counts_of_steps
    assert 0 <= small.gradients <= small.weights


def test_averaged_generators_are_weights(small):
    with torch.device("meta"):
        unit = UNIT(config.from_dict(SMALL))
    averaged = forecast(ema_decay=0.99)
    assert averaged.weights - small.weights == nbytes(unit.generators())
    assert averaged.activations == small.activations
    assert averaged.resident - small.resident == nbytes(unit.generators())


def test_the_perceptual_terms_weights_are_weights_without_moments(small):
    found = forecast(vgg_w=1.0)
    assert found.weights - small.weights == 4 * 14_714_688  # VGG16's convolutions, float32
    assert found.optimizer == small.optimizer
    assert found.activations > 1.1 * small.activations


def test_activations_grow_with_the_images(small):
    larger = forecast(batch_size=4)
    assert 3 < larger.activations / small.activations < 4.01
    assert larger.weights == small.weights


def test_running_blocks_again_saves_activations(small):
    assert forecast(checkpoint_activations=True).activations < 0.75 * small.activations


def test_nothing_is_allocated_and_no_random_number_drawn():
    state = torch.get_rng_state()
    huge = {"crop_image_height": 8192, "crop_image_width": 8192, "batch_size": 64}
    assert forecast(**huge).total > 2**40  # more than the machine has
    assert torch.equal(torch.get_rng_state(), state)


def test_kernels_for_gpus_are_seen_inside_and_not_launched(small):
    with runtime.default_impl("triton"), runtime.recorded_launches(arch=90) as launches:
        found = forecast(precision="bf16", pair_domains="on")
    assert not launches
    assert found.weights == small.weights
    assert 0.4 * small.total < found.total < 1.5 * small.total


def test_storages_count_once_from_making_to_freeing():
    with FakeTensorMode(), live_bytes.LiveBytes(CPU) as live:
        x = torch.empty(MIB, dtype=torch.uint8)
        y = x.view(2, -1)[1].add_(1)  # the storage of x
        live.label([x], live_bytes.WEIGHTS)
        z = (x + 1) + 1  # two at a time, besides x
        del x, y
        assert live.peak == [MIB, 0, 0, 2 * MIB]
        z.sum()
        live.restart()
        assert live.peak == [0, 0, 0, MIB]
    del z


def test_a_heap_stays_as_large_as_it_was():
    with FakeTensorMode(), live_bytes.LiveBytes(CPU) as live:
        small = torch.empty(16 * MIB, dtype=torch.uint8)
        del small
        large = torch.empty(64 * MIB, dtype=torch.uint8)
        assert sum(live.peak) == 64 * MIB
        assert live.peak_resident == round(16 * MIB * live_bytes.HEAP_GROWTH) + 64 * MIB
    del large


def test_a_gpu_with_less_memory_free_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 8 * 2**30))
    cuda = torch.device("cuda")
    fits = memory.Forecast(2**30, 2**30, 2**29, 2**29)
    assert memory.shortage(fits, cuda) is None
    line = memory.shortage(memory.Forecast(2**30, 2**30, 2**29, 2**30), cuda)
    assert "3.50 GiB is more than the 3.00 GiB of 8.00 GiB that cuda has free" in line
    assert all(key in line for key in ("batch_size", "crop_image_height", "checkpoint_activations"))
    assert memory.shortage(fits, CPU) is None


def test_a_dry_run_warns_where_memory_will_not_do(monkeypatch, capsys):
    monkeypatch.setattr(memory, "shortage", lambda expected, device: f"{expected.weights} bytes")
    assert train.main(["--dry-run", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^expected memory: \d+ MiB at the peak of a step \(weights", out, re.MULTILINE
    )
    assert re.search(r"^warning: \d+ bytes$", out, re.MULTILINE)


def test_it_prints_its_parts():
    text = str(memory.Forecast(2 * MIB, 4 * MIB, MIB, 3 * 2**30, resident=4 * 2**30))
    assert text == (
        "3.01 GiB at the peak of a step (weights 2 MiB, optimizers 4 MiB, gradients 1 MiB, "
        "activations and temporaries 3.00 GiB); the process grows by about 4.00 GiB"
    )
    assert "process" not in str(memory.Forecast(1, 1, 1, 1))
