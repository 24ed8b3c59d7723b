"""Docstrings of public names: every parameter has an entry, and operations say what they raise."""

import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest

import fastunit
from fastunit import compat, config, kernels, paper
from fastunit.training import munit_objective, objective, step

NAMED = [
    *(getattr(fastunit, name) for name in fastunit.__all__),
    *(getattr(kernels, name) for name in kernels.__all__),
    *(getattr(paper, name) for name in paper.__all__),
    *(each for each in map(vars(config).get, config.__all__) if inspect.isfunction(each)),
    *(objective.decode_both, objective.discriminator_losses, objective.generator_losses),
    *(munit_objective.decode_both, munit_objective.discriminator_losses),
    *(munit_objective.generator_losses, compat.UNIT_Trainer, compat.MUNIT_Trainer),
    *(step.TrainStep, step.TrainStep.__call__),
]
# Fields of a dataclass say themselves what they are.
PUBLIC = [each for each in dict.fromkeys(NAMED) if callable(each) and not is_dataclass(each)]
OPERATIONS = [each for each in PUBLIC if "impl" in inspect.signature(each).parameters]


def _section(text: str, name: str) -> str:
    """Return what is indented below the line `name:`."""
    found = re.search(rf"^{name}:\n((?:(?: +.*)?\n?)+)", text, flags=re.M)
    return found[1] if found else ""


def _name(value: Callable[..., Any]) -> str:
    return value.__qualname__


def _entries(value: Callable[..., Any], section: str) -> list[str]:
    """Return the names that a section of a docstring has an entry for."""
    return re.findall(r"^ {4}(\w+): \S", _section(inspect.getdoc(value) or "", section), re.M)


@pytest.mark.parametrize("public", PUBLIC, ids=_name)
def test_every_parameter_has_an_entry(public: Callable[..., Any]) -> None:
    function = public.__init__ if inspect.isclass(public) else public
    parameters = set(inspect.signature(function).parameters) - {"self", "args", "kwargs"}
    if len(parameters) == 1 and not inspect.isclass(public):
        return  # the summary line says what it is
    assert set(_entries(public, "Args")) == parameters


@pytest.mark.parametrize("operation", OPERATIONS, ids=_name)
def test_an_operation_says_what_it_returns_and_raises(operation: Callable[..., Any]) -> None:
    assert _section(inspect.getdoc(operation) or "", "Returns")
    raised = ["ValueError", "NotImplementedError", "RuntimeError"]
    assert _entries(operation, "Raises") == raised
