"""Operations in eager mode: what autograd needs to know of them, without PyTorch's dispatcher.

A registered operator is what torch.compile, export and tracing see. To call one takes 0.2 ms more
than to call its function (torch 2.13, two cores), of which most goes into filling in arguments;
backward takes as much again. For a block of small images that is more than its arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
import torch._C._functorch as _functorch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastunit.kernels.common import runtime

_PLAIN = (Tensor, nn.Parameter, type(None))
_REMEMBERED = 4096  # results of each cached function
R = TypeVar("R")


def cached(function: Callable[..., R]) -> Callable[..., R]:
    """Remember what a function of plain values returned: checks and plans, per shape and options.

    1 and 1.0 are different values. torch.compile traces the function itself; values that cannot be
    hashed, as sizes that are symbols, are not remembered.
    """
    remember = functools.lru_cache(_REMEMBERED, typed=True)(function)

    @functools.wraps(function)
    def call(*values: Hashable) -> R:
        if torch.compiler.is_compiling():
            return function(*values)
        try:
            return remember(*values)
        except TypeError:
            return function(*values)

    return call


def transformed() -> bool:
    """Return whether a transform of torch.func, or an export to ONNX, is around the call."""
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        return _transformed_while_traced()
    return _functorch.peek_interpreter_stack() is not None


def _transformed_while_traced() -> bool:
    return _functorch.peek_interpreter_stack() is not None or torch.onnx.is_in_onnx_export()


# What torch.compiler.assume_constant_result sets, without importing the compiler: dynamo asks while
# it traces, when the transforms it has entered are on the stack, and guards on those around it.
_transformed_while_traced._dynamo_marked_constant = True


def only_autograd(*tensors: Tensor | None) -> bool:
    """Return whether autograd alone has to know of an operation on these tensors.

    It has not where anything records, transforms or replaces operators: torch.compile, export and
    jit.trace, torch.func, forward-mode AD, a mode such as FakeTensorMode or FlopCounterMode, a
    tensor subclass. Modes that watch recorded launches see what a GPU would run.
    """
    if (
        torch.compiler.is_compiling()
        or (torch._C._len_torch_dispatch_stack() and not runtime.recording())
        or _functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    ):
        return False
    for tensor in tensors:  # noqa: SIM110 - this is asked at every call, and all() makes one more
        if type(tensor) not in _PLAIN:
            return False
    return True


def hides_backward(*tensors: Tensor | None) -> bool:
    """Return whether autograd alone has to know of a backward pass, and differentiates it no more.

    A gradient may be a batch of gradients (`is_grads_batched`).
    """
    if torch.is_grad_enabled() or not only_autograd(*tensors):
        return False
    for tensor in tensors:
        if tensor is not None and _functorch.is_legacy_batchedtensor(tensor):
            return False
    return True
