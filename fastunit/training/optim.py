"""Adam as the training step uses it: fused, for weights of any memory format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fastunit.common.errors import CheckpointError
from fastunit.config import Config
from fastunit.training import lr_schedule

FUSED = ("cpu", "cuda")  # devices


class LayoutAdam(Adam):
    """PyTorch's Adam for weights of any memory format.

    PyTorch's fused update on the CPU (2.13) matches values by their position in memory and ignores
    strides: gradients and moments in another memory format than their weights silently give wrong
    updates. This class brings them to the weights' strides. PyTorch also copies non-contiguous
    tensors, so channels_last weights are passed as contiguous NHWC views. For weights with gaps in
    memory the fused update is wrong in any case: they raise a ValueError.
    """

    def _init_group(
        self, group: dict, parameters: list, gradients: list, means: list, squares: list, *others
    ) -> bool:
        found = super()._init_group(group, parameters, gradients, means, squares, *others)
        for index, parameter in enumerate(parameters):
            strides, contiguous = parameter.stride(), parameter.is_contiguous()
            if not (contiguous or parameter.is_contiguous(memory_format=torch.channels_last)):
                _check_dense(parameter)
            if gradients[index].stride() != strides:
                gradients[index] = _laid_out_as(parameter, gradients[index])
            for name, moments in (("exp_avg", means), ("exp_avg_sq", squares)):
                if moments[index].stride() != strides:
                    moments[index] = _laid_out_as(parameter, moments[index])
                    self.state[parameter][name] = moments[index]
            if not contiguous and parameter.dim() == 4:
                for tensors in (parameters, gradients, means, squares):
                    tensors[index] = tensors[index].permute(0, 2, 3, 1)
        return found


def _check_dense(parameter: Tensor) -> None:
    span = 1
    for n, step in zip(parameter.shape, parameter.stride(), strict=True):
        span += (n - 1) * step
    if parameter.numel() and span != parameter.numel():
        raise ValueError(
            f"a weight of shape {tuple(parameter.shape)} has strides {parameter.stride()}, with "
            "gaps or overlaps in memory; make it contiguous() before it is trained"
        )


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class AdamOptions(Protocol):
    """Adam's settings, as in `Config` and in the digits' settings."""

    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def adam(parameters: list[nn.Parameter], config: AdamOptions) -> Adam:
    """Return the release's optimizer: Adam with an L2 penalty added to the gradient."""
    return LayoutAdam(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=_can_fuse(parameters),
    )


def differences(optimizer: Optimizer, config: Config, iteration: int) -> list[str]:
    """Return where a restored optimizer differs from a configuration, as "lr 0.1 -> 0.2"."""
    group, wanted = optimizer.param_groups[0], optimizer.defaults
    wanted = wanted | {"lr": lr_schedule.rate(config, iteration)}
    return [
        f"{name} {group[name]} -> {wanted[name]}"
        for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
        if not _alike(group[name], wanted[name])
    ]


def _alike(value: Any, other: Any) -> bool:
    """Return whether two settings are equal up to rounding, which rates accumulate."""
    pairs = zip(value, other, strict=True) if isinstance(value, (tuple, list)) else [(value, other)]
    return all(math.isclose(x, y, rel_tol=1e-9) for x, y in pairs)


def load(optimizers: Mapping[str, Optimizer], state: Any) -> None:
    """Restore optimizers from the release's optimizer.pt, {"gen": ..., "dis": ...}.

    Raises:
        CheckpointError: it belongs to other networks or to another optimizer class.
    """
    try:
        for name, optimizer in optimizers.items():
            needed = optimizer.param_groups[0].keys() - {"initial_lr"}
            optimizer.load_state_dict(state[name])
            for group in optimizer.param_groups:
                if missing := sorted(needed - group.keys()):
                    raise ValueError(f"{name} is of another kind, without {', '.join(missing)}")
            if isinstance(optimizer, Adam):
                check_moments(optimizer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"optimizer.pt does not fit the networks: {error}") from error


def restore(optimizer: Adam, state: Mapping[str, Any]) -> None:
    """Restore moments and steps from a state_dict; the configuration's settings stay.

    Raises:
        KeyError, ValueError: the state is of other weights.
    """
    optimizer.load_state_dict(dict(state))
    check_moments(optimizer)
    for group in optimizer.param_groups:
        group.update(optimizer.defaults)
    reset_execution(optimizer)


def reset_execution(optimizer: Optimizer) -> None:
    """Reset the options of a restored optimizer that are about execution, such as `fused`.

    `load_state_dict` takes them from the state. Optimizers of other classes are not changed.
    """
    if not isinstance(optimizer, LayoutAdam):
        return
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = float(group["lr"]), False
        group["fused"], group["foreach"] = _can_fuse(group["params"]), None
    for parameter, state in optimizer.state.items():
        state["step"] = state["step"].to(parameter.device, torch.float32)


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in FUSED for p in parameters)


def make_capturable(optimizer: Optimizer) -> None:
    """Prepare the updates for capture in a CUDA graph: the rate becomes a device tensor."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def check_moments(optimizer: Adam) -> None:
    """Raise ValueError if moments and weights differ in shape, which load_state_dict ignores."""
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != parameter.shape:
                raise ValueError(
                    f"{name} of shape {tuple(moments[name].shape)} for a weight of shape "
                    f"{tuple(parameter.shape)}"
                )
