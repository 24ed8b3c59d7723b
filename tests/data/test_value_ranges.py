"""16-bit values: exact in a given range, and a warning where 8 bits would keep few of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit import config, translate
from fastunit.common.errors import ConfigError, DataError
from fastunit.data import decoding, exact, image_io
from fastunit.data.image_io import Reading
from fastunit.data.picture import Wanted
from fastunit.data.pipeline import DomainLoader
from fastunit.data.validation import SizeRule, problem, validate_all

pytest.importorskip("nvidia.dali", reason="16-bit values are read with NVIDIA DALI")
THERMAL = (51709, 52147)


def values(low: int, high: int, shape: tuple[int, int] = (24, 40), seed: int = 0) -> np.ndarray:
    """Return uint16 values of which both ends are some."""
    random = np.random.default_rng(seed).integers(low, high + 1, shape, dtype=np.uint16)
    random[0, :2], random[1, :2] = low, high
    return random


def saved(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)
    return file


def mapped(array: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return -1..1 for low..high."""
    return (array.astype(float).clip(low, high) - low) / (high - low) * 2 - 1


def check(files: list[Path], reading: Reading) -> None:
    rule = SizeRule(None, None, reading)
    validate_all({"train_a": (files, rule)}, workers=0, skip_bad=False)


@pytest.mark.parametrize("bounds", [THERMAL, (0, 4095), (0, 65535), (7, 8), (65000, 65535)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_and_translation_map_values_exactly(
    tmp_path, as_trained, bounds, suffix, channels
):
    array = values(0, 65535)
    array[2:] = values(*bounds)[2:]
    file = saved(tmp_path / f"x.{suffix}", array)
    trained = as_trained(file, channels, threads=0, value_range=bounds, exact=True)
    expected = np.repeat(mapped(array, *bounds)[..., None], channels, -1).astype(np.float32)
    assert np.array_equal(trained, expected)
    reading = Reading(channels, bounds)
    assert np.array_equal(exact.decode(file.read_bytes(), reading, deep=False), expected)
    assert np.array_equal(decoding.picture(file, reading, Wanted()).pixels, expected)
    assert problem(file, SizeRule(None, None, reading)) is None


def test_files_of_8_bits_are_refused_where_a_range_is_given(tmp_path):
    reading = Reading(1, THERMAL, "data.range_b")
    file = saved(tmp_path / "x.png", np.zeros((8, 8), np.uint8))
    reason = problem(file, SizeRule(None, None, reading))
    assert "not of 16 bits or floating, as data.range_b=[51709, 52147] expects" in reason
    with pytest.raises(DataError, match="not of 16 bits"):
        exact.decode(file.read_bytes(), reading, deep=False)


def test_a_narrow_domain_warns_with_the_range_and_the_remedy(tmp_path, caplog):
    low, high = THERMAL
    files = [
        saved(tmp_path / "0.png", values(low, low + 300, seed=1)),
        saved(tmp_path / "1.tif", values(low + 100, high, seed=2)),
    ]
    for _ in range(2):  # the second time from the index
        caplog.clear()
        check(files, Reading(1, None, "data.range_a"))
        (message,) = caplog.messages
        assert "values are 51709..52147" in message and "of 256 gray levels" in message
        assert message.endswith("--set data.range_a=[51709,52147]")
    caplog.clear()
    check(files, Reading(1, THERMAL, "data.range_a"))
    assert caplog.messages == []
    check(files, Reading(1, (0, 1000), "data.range_a"))  # a range that misses them
    assert "0..1000 brings to 1 of 256" in caplog.text


def test_a_dead_pixel_does_not_hide_a_narrow_range(tmp_path, caplog):
    array = values(*THERMAL, shape=(50, 60))
    array[20, 30], array[21, 31] = 0, 65535
    check([saved(tmp_path / "x.png", array)], Reading(1, None, "data.range_a"))
    (message,) = caplog.messages
    assert "values are 0..65535" in message
    low, high = map(int, message.rpartition("=[")[2].rstrip("]").split(","))
    assert THERMAL[0] <= low < high <= THERMAL[1] and high - low > 400


@pytest.mark.parametrize("levels", [10, 30, 33, 100])
def test_the_warning_starts_below_32_levels(tmp_path, caplog, levels):
    array = values(1000, 1000 + (levels - 1) * 257)
    check([saved(tmp_path / "x.png", array)], Reading(1, None, "data.range_a"))
    assert len(caplog.messages) == (levels < 32)


def test_constant_and_8_bit_files_do_not_warn(tmp_path, caplog):
    check(
        [
            saved(tmp_path / "dark.png", np.full((8, 8), 900, np.uint16)),
            saved(tmp_path / "byte.png", np.arange(64, dtype=np.uint8).reshape(8, 8) // 8),
        ],
        Reading(1, None, "data.range_a"),
    )
    assert caplog.messages == []


def test_a_stream_applies_the_range(tmp_path):
    file = saved(tmp_path / "x.png", np.full((16, 16), 52000, np.uint16))
    stream = DomainLoader(
        [file],
        channels=1,
        batch_size=2,
        crop=(8, 8),
        new_size=12,
        seed=0,
        stream=0,
        device=torch.device("cpu"),
        value_range=THERMAL,
    )
    level = mapped(np.array([52000]), *THERMAL)[0]
    torch.testing.assert_close(next(stream), torch.full((2, 1, 8, 8), level, dtype=torch.float32))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("5", r"must be two numbers, \[low,high\]"),
        ("[1,2,3]", r"must be two numbers, \[low,high\]"),
        ("[9,9]", "low below high"),
        ("[0,2e9]", "must be at most"),
        ("[nan,5]", "must be a finite number"),
    ],
)
def test_wrong_ranges_are_refused_by_name(given, reason):
    with pytest.raises(ConfigError, match=rf"data\.range_b=.*{reason}"):
        config.load("photos", [f"data.range_b={given}"])


def test_a_range_survives_yaml_and_is_for_files_alone(tmp_path):
    settings = config.load("photos", ["data.range_a=[51709,52147]"])
    assert settings.domain("a").value_range == THERMAL and settings.domain("b").value_range is None
    (tmp_path / "x.yaml").write_text(config.dump_yaml(settings))
    assert config.load(tmp_path / "x.yaml") == settings
    with pytest.raises(ConfigError, match=r"data\.range_a is for files of 16 bits and floating"):
        config.load("demo", ["data.range_a=[51709,52147]"])


def test_one_range_is_for_both_domains(tmp_path):
    settings = config.load("photos", ["data.value_range=[-0.5,2.5]", "data.range_b=[0,4095]"])
    assert settings.domain("a").value_range == (-0.5, 2.5)
    assert settings.domain("b").value_range == (0, 4095)
    assert image_io.reading_of(settings, "a").value_range == (-0.5, 2.5)


def test_a_checkpoint_translates_with_its_range(tmp_path, save_networks, capsys):
    ranges = {"data": {"range_a": list(THERMAL), "range_b": [0, 4095]}}
    model = save_networks(tmp_path / "run", input_dim_a=1, input_dim_b=1, **ranges)
    plain = save_networks(tmp_path / "plain", input_dim_a=1, input_dim_b=1)
    array = values(*THERMAL)
    saved(tmp_path / "in.png", array)
    np.save(tmp_path / "mapped.npy", mapped(array, *THERMAL) / 2 + 0.5)
    words = ["--direction", "a2b", "--device", "cpu"]
    assert (
        translate.main([str(model), str(tmp_path / "in.png"), str(tmp_path / "1.png"), *words]) == 0
    )
    out = capsys.readouterr().out
    assert "read values 51709..52147 as black and white (data.range_a)" in out
    assert "a level v of 0..255 stands for 0 + v * 16.0588 (data.range_b)" in out
    argv = [str(plain), str(tmp_path / "mapped.npy"), str(tmp_path / "2.png"), *words]
    assert translate.main(argv) == 0
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    saved(tmp_path / "byte.png", np.zeros((8, 8), np.uint8))
    argv = [str(model), str(tmp_path / "byte.png"), str(tmp_path / "3.png"), *words]
    assert translate.main(argv) == 1
    assert "floating, as data.range_a=[51709, 52147] expects" in capsys.readouterr().err
