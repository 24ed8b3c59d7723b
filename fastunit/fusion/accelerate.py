"""`accelerate`: a network of anybody's on the fused operations, without a change to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from types import FunctionType, NoneType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastunit.fusion.backend import eager, register
from fastunit.fusion.report import Report
from fastunit.kernels.common.eager import only_autograd

M = TypeVar("M", bound=nn.Module)


def accelerate(model: M, *, example: Any = None, inplace: bool = False) -> M:
    """Let a network run on fused operations where its layers allow it.

    Its own code is traced at the first call (by dynamo), and convolutions with what surrounds them
    (padding or nearest 2x upsampling; instance norm, AdaIN, UNIT's layer norm or a batch norm in
    evaluation; activation; residual) become one operation each; all else runs as it was. Class,
    parameters, state_dict keys, optimizers, hooks and checkpoints stay the same. Results differ by
    rounding. On a CPU a pattern that was measured to be slower is left as it is.

    Args:
        model: any module that takes and returns images [N, C, H, W].
        example: an input, or a tuple of positional inputs, for which the network is traced now
            (twice: with gradients and without), so that the report is complete. None waits.
        inplace: whether to change `model` itself. Otherwise the result is a second module with the
            same parameters, buffers and submodules, and `model` runs as before.

    Returns:
        The module. Its attribute `acceleration` is a `Report`: print it. A copy or a pickle of it
            runs as the original did: accelerate it again.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    found = model if inplace else copy.copy(model)
    report = Report()
    own: Any = found
    own.acceleration = report
    own._compiled_call_impl = _call(found, report)
    register()
    if example is not None:
        inputs = example if isinstance(example, tuple) else (example,)
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                found(*inputs)
    return found


def _call(model: nn.Module, report: Report) -> Callable[..., Any]:
    """Return what calling the module does: as nn.Module.compile, with our backend.

    Under transforms, modes, other compilers, tracing and forward-mode AD the module runs as it is;
    and where nothing was fused for inputs of such shapes, which saves dynamo's checks.
    """
    # Code of its own: dynamo counts the graphs of a code object, whatever module they are of.
    run = FunctionType(_run.__code__.replace(), _run.__globals__)
    fast = torch.compile(run, backend=eager(report))
    useless: set[Hashable] = set()

    def call(*args: Any, **kwargs: Any) -> Any:
        if not only_autograd() or forward_ad._current_level >= 0:
            return model._call_impl(*args, **kwargs)
        form = _form(model, args, kwargs)
        if form in useless:
            return model._call_impl(*args, **kwargs)
        before = report.runs
        result = fast(model, *args, **kwargs)
        if report.runs == before and form is not None:
            useless.add(form)
        return result

    return call


def _run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module; dynamo does not begin in PyTorch's own code, as nn.Sequential is."""
    return self._call_impl(*args, **kwargs)


def _form(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Return what a graph of a call depends on, or None where it takes numbers, lists or others."""
    given = [*args, *kwargs, *kwargs.values()]
    if not all(isinstance(each, (Tensor, bool, str, NoneType)) for each in given):
        return None
    forms = tuple(
        (each.shape, each.dtype, each.device) if isinstance(each, Tensor) else each
        for each in given
    )
    return model.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), forms
