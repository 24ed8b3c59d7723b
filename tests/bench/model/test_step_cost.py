"""The command that counts a step: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json

import pytest

from bench.model import groups, step_cost
from bench.model.gpu import H100
from bench.model.recorded import compiled, record
from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.kernels.common import runtime
from tests.support.benchmarks import SMALL

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")

TINY = ["gen.dim=8", "gen.n_res=1", "gen.n_downsample=1", "dis.dim=8", "dis.n_layer=2",
    "dis.num_scales=1"]  # fmt: skip
ARGUMENTS = ["--size", "32", *(word for key in TINY for word in ("--set", key))]


# Compiling some fifty variants takes longer than ten seconds.
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def report():
    args = step_cost._parser().parse_args(ARGUMENTS)
    found = step_cost.measure(step_cost._settings(args), H100)
    return found | {"commit": "0123abc", "config": "tiny"}


@slow
def test_the_groups_add_up_to_the_step(report):
    rows = report["groups"]
    assert report["launches"] == sum(row["launches"] for row in rows)
    assert report["ms"] == pytest.approx(sum(row["us"] for row in rows) / 1e3)
    assert report["tflop"] == pytest.approx(sum(row["flops"] for row in rows) / 1e12)
    assert report["variants"] == sum(row["variants"] for row in rows)
    ours = sum(row["times"] for row in report["kernels"])
    assert ours + sum(row["times"] for row in report["aten"]) == report["launches"]
    assert report["launches"] < report["launches_without_compile"]
    assert report["host_waits"] == {}


@slow
def test_known_kernels_are_in_known_groups(report):
    assert {row["name"] for row in report["groups"]} <= set(groups.ORDER)


@slow
def test_each_kernel_has_its_resources(report):
    product = next(row for row in report["kernels"] if row["name"] == "conv_gemm_kernel")
    assert product["registers"] > 0 and product["shared"] > 0 and product["resident"] > 0
    assert product["waves"] * product["resident"] * 132 == pytest.approx(product["programs"])
    assert product["area"] > 0 and product["tile"].count("x") == 2


@slow
def test_the_table_has_a_line_for_each_group_and_both_sums(report):
    lines = step_cost.lines(report)
    assert lines[0].startswith("Modelled, not measured: tiny, 32x32, batch 1, bf16, H100")
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(report["groups"]) + 2
    assert f"| **step** | {report['launches']} |" in "\n".join(table)
    other = report["strongest"]
    assert f"- strongest / fastunit: {other['ms'] / report['ms']:.2f}" in lines
    assert {row["name"] for row in other["groups"]} == {"convolutions", "Adam", "fused passes"}


@slow
def test_the_command_prints_a_table_or_json(capsys):
    assert step_cost.main(ARGUMENTS) == 0
    assert "| **step** |" in capsys.readouterr().out
    assert step_cost.main([*ARGUMENTS, "--json", "--compile", "off"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compile"] is False and found["batch"] == 1
    assert found["launches"] == found["launches_without_compile"]


@slow
def test_networks_without_an_alternative_have_none(capsys):
    assert step_cost.main([*ARGUMENTS, "--set", "share.enc=1"]) == 0
    assert "strongest / fastunit: not known" in capsys.readouterr().out


def test_what_is_no_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"gen\.dimm"):
        step_cost.main(["--set", "gen.dimm=8"])
    with pytest.raises(ConfigError):
        step_cost.main(["--batch", "0"])


def test_a_step_is_recorded_alike_every_time():
    found = [compiled(record(from_dict(SMALL), H100)) for _ in range(2)]
    names, works = ([getattr(f, key) for f in found] for key in ("names", "events"))
    assert names[0] == names[1]
    for first, again in zip(*works, strict=True):  # but for how storages are numbered
        assert first.work.name == again.work.name and first.work.flops == again.work.flops
        for parts, others in (
            (first.work.reads, again.work.reads),
            (first.work.writes, again.work.writes),
        ):
            assert [part[1:] for part in parts] == [part[1:] for part in others]


def test_the_average_is_counted():
    plain, averaged = (record(from_dict(SMALL | {"ema_decay": d}), H100) for d in (0.0, 0.9))
    assert sum("_foreach" in event.work.name for event in averaged.events) > sum(
        "_foreach" in event.work.name for event in plain.events
    )
