"""Which derivatives the operations have: reverse mode, once. Others raise, naming the operation.

Without a check PyTorch would silently return zero tangents in forward mode for an operator that has
no rule for it. impl="plain" has every derivative.
"""

from __future__ import annotations

from typing import NoReturn

import torch
import torch._C._functorch as _functorch
from torch import Tensor
from torch.autograd import forward_ad

REMEDY = 'use impl="plain", or reverse mode, torch.autograd.grad or backward()'
TWICE = 'use impl="plain" for gradient penalties and Hessians'


def only_reverse(operation: str, *tensors: object) -> None:
    """Check that neither forward-mode AD nor a gradient of torch.func goes through the tensors.

    Costs a comparison and a call where neither is on. What is no tensor is left out.

    Raises:
        NotImplementedError: a tensor has a tangent, or torch.func.grad, vjp or jacrev follows it.
    """
    if forward_ad._current_level < 0 and (
        torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is None
    ):
        return
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
    raise RuntimeError(
        f"{operation} is differentiable once; its second derivative is not implemented; {TWICE}"
    )


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
