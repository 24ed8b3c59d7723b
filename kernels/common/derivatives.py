"""Which derivatives the operations have, and what happens where one lacks a derivative.

Triton's and ATen's forms have reverse mode, once. impl="plain" has every derivative, so "auto"
takes it under torch.func, with dual tensors and in ONNX export; and where autograd keeps the graph
of a gradient (`create_graph`), that gradient is computed again by the plain form. An explicit
"triton" or "aten" raises, naming the operation: PyTorch would silently return zero tangents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch._C._functorch as _functorch
from torch import Tensor
from torch.autograd import forward_ad

from fastunit.kernels.common import eager, runtime

REMEDY = 'use impl="auto" or "plain", or reverse mode, torch.autograd.grad or backward()'
TWICE = 'in eager mode impl="auto" has it, and impl="plain" everywhere'


def only_plain(impl: str, operation: str, *tensors: object) -> bool:
    """Return whether "auto" has to take the plain form of an operation.

    Raises:
        NotImplementedError: impl is not "auto", and a tensor has a tangent, or torch.func.grad,
            vjp or jacrev follows it.
    """
    if forward_ad._current_level < 0 and not eager.transformed():
        return False
    if runtime.is_auto(impl):
        return True
    _only_reverse(operation, *tensors)
    return False


def _only_reverse(operation: str, *tensors: object) -> None:
    if torch.compiler.is_compiling() and forward_ad._current_level < 0:
        return  # a gradient of torch.func cannot be seen here
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if _has_tangent(tensor):
            raise NotImplementedError(
                f"{operation} has no forward-mode derivative (torch.func.jvp, jacfwd, linearize, "
                f"dual tensors); {REMEDY}"
            )
        if _is_followed(tensor):
            raise NotImplementedError(
                f"{operation} cannot be differentiated by torch.func (grad, vjp, jacrev, "
                f"hessian); {REMEDY}"
            )


def refuse_second(operation: str) -> NoReturn:
    """Raise RuntimeError for a derivative of a derivative."""
    raise RuntimeError(f"{operation} is differentiable once here; its second derivative: {TWICE}")


def _has_tangent(tensor: Tensor) -> bool:
    """Return whether the tensor is dual, at this or at a level of torch.func around it."""
    if forward_ad._current_level < 0:
        return False
    while _functorch.is_batchedtensor(tensor):  # which cannot be asked
        tensor = _functorch.get_unwrapped(tensor)
    if forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    # A tangent of an outer level cannot be seen from an inner one: the wrapper is taken for it.
    outer = (_functorch.get_interpreter_stack() or [])[:-1]
    levels = {each.level() for each in outer if each.key() == _functorch.TransformType.Jvp}
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.maybe_get_level(tensor) in levels:
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def _is_followed(tensor: Tensor) -> bool:
    """Return whether a torch.func.grad around the call takes the tensor's derivative."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_gradtrackingtensor(tensor) and tensor.requires_grad:
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def differentiated_again() -> bool:
    """Return whether, inside a backward pass, the gradients themselves are differentiated."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def gradients(
    plain: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    needed: Sequence[bool],
    dy: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of plain(*tensors), differentiable in the tensors and in dy.

    Args:
        plain: composed of PyTorch's operations.
        tensors: as the forward pass saved them: connected to the graph that made them.
        needed: which of them need a gradient; the others get None.
        dy: gradient of the result.
    """
    with torch.enable_grad():
        # Copies of the references: one tensor in two places has two gradients.
        own = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        wanted = [t for t, need in zip(own, needed, strict=True) if need and t is not None]
        found = iter(
            torch.autograd.grad(plain(*own), wanted, dy, create_graph=True, allow_unused=True)
        )
    return [next(found) if need else None for need in needed]


def stand_in(x: Tensor) -> Tensor:
    """Return a tensor that leads to x in autograd's graph, without its memory or values."""
    return _StandIn.apply(x)


def with_values(stand_in: Tensor, values: Tensor) -> Tensor:
    """Return values that lead to what `stand_in` stands for, which has the same shape."""
    with torch.enable_grad():
        return _WithValues.apply(stand_in, values)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_empty(1).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        return dx


class _WithValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return dx, None
