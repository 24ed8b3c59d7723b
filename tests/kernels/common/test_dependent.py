"""Programmatic dependent launch: every kernel waits before it touches memory, if it is asked to."""

from __future__ import annotations

import ast
import re

import pytest
import torch

from bench.gpu import aot
from fastunit import config
from fastunit.kernels import instance_norm_act
from fastunit.kernels.common import dependent, runtime
from fastunit.kernels.common.environment import is_on
from fastunit.kernels.common.variants import specialise, variants
from tests.support.checkout import ROOT
from tests.support.processes import python

WAIT, SIGNAL = "griddepcontrol.wait", "griddepcontrol.launch_dependents"
INSTRUCTION = re.compile(
    r"^\s*(?:\{\s*)?(?:@!?%\w+\s+)?((?:ld|st|atom|red|cp|prefetch|griddepcontrol|bra)\b[\w.:]*)",
    re.MULTILINE,
)
compiles = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


def functions():
    """Return the kernels' definitions by name."""
    found = {}
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                found[node.name] = node
    return found


def launches(arch):
    """Return the launches of a step, and of the one kernel that it has no use for."""
    found = aot.step_launches(config.load("photos", aot.SIZES), arch, torch.bfloat16)
    with runtime.recorded_launches(arch) as others:
        x = torch.zeros(1, 16, 8, 8).to(memory_format=torch.channels_last)
        instance_norm_act(x, act="relu", impl="triton")
    return [*found, *others]


def entries(arch):
    """Return the PTX of each kernel's entry, one variant of each."""
    each = {variant.name: variant for variant in variants(launches(arch), arch)}
    found = {name: variant.compile().asm["ptx"] for name, variant in each.items()}
    return {name: ptx[ptx.index(".entry") :] for name, ptx in found.items()}


def accesses_memory(operation):
    """Return whether an instruction is an access of global memory."""
    if operation.startswith(("griddepcontrol", "bra")):
        return False
    return operation.startswith("cp") or not re.search(r"\.(param|shared|local)\b", operation)


def test_every_kernel_waits_before_anything_else():
    found = functions()
    assert len(found) == 19
    for name, function in found.items():
        assert ast.unparse(function.body[0]) == "wait_for_previous()", name


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 100])
def test_the_wait_precedes_all_accesses_of_global_memory(arch, monkeypatch):
    monkeypatch.setattr(dependent, "ON", True)
    found = entries(arch)
    assert found.keys() == functions().keys()
    for name, ptx in found.items():
        assert ptx.count(WAIT) == ptx.count(SIGNAL) == 1, name
        wait = ptx.index(WAIT)
        before = [match for match in INSTRUCTION.finditer(ptx) if match.start(1) < wait]
        assert not [match[1] for match in before if accesses_memory(match[1])], name
        assert not [match[1] for match in before if match[1].startswith("bra")], name
        after = [match[1] for match in INSTRUCTION.finditer(ptx, ptx.index(SIGNAL))]
        assert any(map(accesses_memory, after)), name


@compiles
@pytest.mark.slow
def test_without_the_switch_there_is_no_trace_of_it():
    assert not dependent.ON
    assert not [name for name, ptx in entries(90).items() if "griddepcontrol" in ptx]


@compiles
def test_the_option_tells_variants_apart_and_older_gpus_do_without(monkeypatch):
    (launch,) = launches(90)[-1:]
    before = specialise(launch, 90)
    monkeypatch.setattr(dependent, "ON", True)
    after = specialise(launch, 90)
    assert (before.options.launch_pdl, after.options.launch_pdl) == (False, True)
    assert before.cache_key != after.cache_key
    dependent.options.cache_clear()
    with pytest.warns(UserWarning, match=r"FASTUNIT_PDL=1 needs compute capability 9.0, not 8.9"):
        older = specialise(launch, 89)
    assert not older.options.launch_pdl


class Kernel:
    """Notes the options of its launches."""

    def __init__(self):
        self.options = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.options.append(options)


def test_launches_ask_for_it(monkeypatch):
    kernel, x = Kernel(), torch.zeros(1)
    runtime.launch(kernel, (1,), x, BLOCK=16)
    monkeypatch.setattr(dependent, "ON", True)
    runtime.launch(kernel, (1,), x, BLOCK=16)
    plain = {"num_warps": 4, "num_stages": 3, "BLOCK": 16}
    assert kernel.options == [plain, plain | {"launch_pdl": True}]


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("1", True), (None, False)])
def test_a_switch_is_on_for_1(value, on, monkeypatch):
    monkeypatch.delenv("FASTUNIT_PDL", raising=False)
    if value is not None:
        monkeypatch.setenv("FASTUNIT_PDL", value)
    assert is_on("FASTUNIT_PDL") is on


def test_what_is_neither_on_nor_off_is_named(monkeypatch):
    monkeypatch.setenv("FASTUNIT_PDL", "yes")
    message = r"FASTUNIT_PDL='yes' is ignored: set it to 1 \(on\) or 0 \(off\)"
    with pytest.warns(UserWarning, match=message):
        assert not is_on("FASTUNIT_PDL")


@pytest.mark.parametrize(("interpret", "on"), [("0", "True"), ("1", "False")])
def test_the_environment_is_read_at_import(interpret, on):
    code = (
        "from fastunit.kernels.common import branches, dependent; print(branches.ON, dependent.ON)"
    )
    names = dict.fromkeys(("FASTUNIT_PDL", "FASTUNIT_BRANCHES"), "1")
    child = python("-c", code, env=names | {"TRITON_INTERPRET": interpret})
    assert child.stdout.split() == ["True", on], child.stderr
