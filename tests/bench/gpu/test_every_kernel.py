"""bench/gpu/every_kernel.py, which compute-sanitizer looks at: it leaves no kernel out."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
import torch

from bench.gpu import every_kernel
from fastunit.common import cli
from fastunit.kernels.common import runtime
from tests.support.checkout import ROOT


def jitted() -> Iterator[ast.FunctionDef]:
    """Yield every function under kernels/ that Triton compiles."""
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                "jit" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                yield node


def defined() -> set[str]:
    """Return the kernels: functions for Triton that no other of them calls."""
    functions = list(jitted())
    called = {
        ast.unparse(call.func).rpartition(".")[2]
        for function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
    }
    return {function.name for function in functions} - called


@pytest.fixture(scope="module")
def launches():
    return every_kernel.launches()


def test_no_kernel_is_left_out(launches):
    assert len(defined()) >= 10
    assert {every_kernel.name(launch) for launch in launches} == defined()


def test_kernels_run_in_every_precision(launches):
    products = [launch for launch in launches if every_kernel.name(launch) == "conv_gemm_kernel"]
    found = {(launch.args[0].dtype, launch.constexprs["PRECISION"]) for launch in products}
    assert {dtype for dtype, _ in found} == {torch.bfloat16, torch.float16, torch.float32}
    assert {precision for dtype, precision in found if dtype == torch.float32} == {"ieee", "tf32"}


def test_backward_runs_too(launches):
    found = {launch.constexprs.get("UP") for launch in launches}
    assert {1, 2} <= found  # gathers; scatters with a stride
    residuals = [x for x in launches if every_kernel.name(x) == "backward_apply_kernel"]
    given = [dict(zip(x.kernel.arg_names, x.args, strict=False)) for x in residuals]
    assert {each["reflects"] for each in given} == {0, 1}


def test_the_list_needs_no_gpu(capsys):
    before = torch.backends.cudnn.conv.fp32_precision
    assert every_kernel.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == sorted(defined())
    assert torch.backends.cudnn.conv.fp32_precision == before and not runtime.recording()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_without_a_gpu_it_is_refused_in_one_line(capsys):
    assert cli.guard(lambda: every_kernel.main([])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_case_has_every_gradient_on_aten():
    """The cases fit the operations: the plain twins run them and leave finite numbers."""
    for case in every_kernel.CASES.values():
        operation = case.operation

        def plain(*args, operation=operation, **options):
            return operation(*args, **(options | {"impl": "aten"}))

        found = every_kernel.results(
            case._replace(operation=plain), torch.float32, torch.device("cpu")
        )
        assert len(found) > len(case.shapes)
        assert all(value.isfinite().all() for value in found)


@pytest.mark.gpu
def test_a_gpu_leaves_finite_numbers():
    found = dict(every_kernel.run(torch.device("cuda")))
    assert len(found) == len(every_kernel.CASES) * len(every_kernel.PRECISIONS)
    assert all(found.values())
