"""Texts of configurations: JSON's types, and a reason for everything else, within limits."""

from __future__ import annotations

import math
import os
import time

import pytest

from fastunit import config
from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.config.fields import known_keys
from fastunit.config.yaml_text import parse
from tests.hostile import configurations

VALUES = [
    ("", None), ("~", None), ("null", None), ("true", True), ("Off", False), ("yes", True),
    ("12", 12), ("-3", -3), ("1_000", 1000), ("1.5", 1.5), ("1e-4", 1e-4), ("-.5E3", -500.0),
    ("'12'", "12"), ('"a\\n"', "a\n"), ("oN", "oN"), ("0x10", "0x10"), ("12:30", "12:30"),
    ("2001-12-14", "2001-12-14"), ("a b", "a b"), ("[1, [a, ~]]", [1, ["a", None]]),
    ("{a: 1, b: {c: on}}", {"a": 1, "b": {"c": True}}), ("a:\nb: [x]", {"a": None, "b": ["x"]}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values(text, value):
    assert parse(text) == value and type(parse(text)) is type(value)


def test_infinite_and_no_numbers():
    assert parse("[.inf, -.inf, +.INF]") == [math.inf, -math.inf, math.inf]
    assert math.isnan(parse(".nan"))


LAUGHS = "a: &a [x,x,x,x]\nb: &b [*a,*a]\n"
REFUSED = [
    (LAUGHS, "anchor &a"), ("a: *b", "alias"), ("gen: {<<: {dim: 1}}", "merge key <<"),
    ("!!int x", "tag"), ("!!python/object:os.system {}", "tag"), ("lr: 010", "leading zeros"),
    ("lr: 1\nlr: 2", "'lr' stands twice"), ("[" * 100, "levels deep"), ("? [a]\n: b", "a key is"),
    ("--- 1\n--- 2", "more than one document"), ('"\\U99999999"', "not valid YAML"),
    ("a: [", "not valid YAML"), ("x" * 70_000, "70,000 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_configurations_do_not_use_is_refused(text, reason):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        *("lr=2001-13-45", "lr=0x_", "lr=!!int x", "lr=" + "[" * 1000),
        *("gen.n_downsample=10000000000", "dis.num_scales=20", "gen.dim=1" + "0" * 30),
        "gen.dim=" + "9" * 5000,
    ],
    ids=lambda text: text[:30],
)
def test_values_that_once_crashed_or_hung_are_refused_at_once(override):
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        config.load(None, [override])
    assert time.perf_counter() - start < 2 and len(str(caught.value)) < 400


def test_every_number_has_an_upper_limit():
    for key in known_keys(config.Config):
        *sections, leaf = key.split(".")
        values: dict = {leaf: 10**30}
        for name in reversed(sections):
            values = {name: values}
        with pytest.raises(ConfigError):
            from_dict(values)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_files_that_never_end_are_refused(tmp_path, make):
    make(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"not a regular file but a .*c\.yaml"):
        config.load(tmp_path / "c.yaml")


def test_names_that_no_file_can_have_are_refused():
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="cannot read"):
            config.load(name)


def test_mutants_are_refused_or_good():
    counts, wrong = configurations.run(200, seed=1)
    assert wrong == [] and counts["accepted"] and counts["refused"]
