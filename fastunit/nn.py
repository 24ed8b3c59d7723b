"""Modules on the fused operations, for people who write networks.

Parameters and state_dict keys are those of PyTorch's modules whose place they take.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastunit.kernels import conv_norm_act, instance_norm_act
from fastunit.kernels.common.checks import Activation
from fastunit.kernels.norm_act.op import arguments_of
from fastunit.models.unfused import say_plain, untouched

__all__ = ["AdaINConv2d", "ConvNormAct2d", "InstanceNormAct2d"]

_PADS = {nn.ZeroPad2d: "zero", nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
_ACTIVATIONS = {
    nn.ReLU: "relu", nn.LeakyReLU: "lrelu", nn.PReLU: "prelu", nn.SELU: "selu", nn.Tanh: "tanh",
    nn.GELU: "gelu", nn.SiLU: "silu", nn.Sigmoid: "sigmoid", nn.Hardswish: "hardswish",
}  # fmt: skip
_PADDING_MODES = {"zeros": "zero", "reflect": "reflect", "replicate": "replicate"}


class InstanceNormAct2d(nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` without running statistics, an activation and a residual, in one.

    Args:
        num_features: channels C.
        eps: added to the variance.
        affine: whether to scale and shift by `weight` and `bias`, both [C].
        act: as in `fastunit.kernels.conv_norm_act`, but for "prelu".
        slope: negative slope of lrelu.

    Images [N, C, H, W] or [C, H, W] of any floating dtype and memory format, as in
    `instance_norm_act`. `residual`, of the same shape, is added last.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = False,
        act: Activation = "relu",
        slope: float = 0.2,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine)
        self.act, self.slope = act, slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        given: Any = arguments_of(self) | {"act": self.act, "slope": self.slope}
        return instance_norm_act(input, **given, residual=residual)


class ConvNormAct2d(nn.Sequential):
    """Padding, convolution, instance norm and activation, in one: an nn.Sequential of modules.

    Keys are the Sequential's. With modules that the operation does not have (other norms, groups,
    dilation), with hooks, parametrizations or replaced modules it runs them one by one.

    The modules are [nn.ZeroPad2d | ReflectionPad2d | ReplicationPad2d], nn.Conv2d,
    [InstanceNorm2d], [nn.ReLU | LeakyReLU | PReLU | SELU | Tanh | GELU | SiLU | Sigmoid |
    Hardswish], in this order; those in brackets may be left out. PyTorch computes the last four
    after the operation. `residual`, of the result's shape, is added last.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if (options := self._options()) is not None:
            conv = self._conv
            return conv_norm_act(input, conv.weight, conv.bias, **options, residual=residual)
        say_plain(type(self).__name__)
        y = super().forward(input)
        return y if residual is None else y + residual

    @classmethod
    def from_modules(cls, *modules: nn.Module) -> ConvNormAct2d:
        """Return one of modules, which keep their parameters; a Sequential stands for its own."""
        flat = [m for each in modules for m in (each if type(each) is nn.Sequential else [each])]
        return cls(*flat)

    @property
    def fuses(self) -> bool:
        """Whether a fused operation computes what the modules do."""
        return self._options() is not None

    @property
    def _conv(self) -> Any:
        return next((each for each in self if isinstance(each, nn.Conv2d)), None)

    def _options(self) -> dict[str, Any] | None:
        """Return the operation's keyword arguments, or None where it cannot compute it."""
        rest: list[Any] = list(self)
        options: dict[str, Any] = {"padding": 0}
        if rest and untouched(rest[0], *_PADS) and len(set(rest[0].padding)) == 1:
            pad: Any = rest.pop(0)
            options |= {"padding": pad.padding[0], "pad_mode": _PADS[type(pad)]}
        if not rest or not _fits(conv := rest.pop(0)):
            return None
        if any(conv.padding):
            if options["padding"]:
                return None
            mode = _PADDING_MODES[conv.padding_mode]
            options = {"padding": conv.padding[0], "pad_mode": mode}
        options["stride"] = conv.stride[0]
        if rest and untouched(rest[0], nn.InstanceNorm2d) and not rest[0].track_running_stats:
            norm: Any = rest.pop(0)
            options |= {"norm": "in", "eps": norm.eps, "gamma": norm.weight, "beta": norm.bias}
        if rest and untouched(rest[0], *_ACTIVATIONS):
            act: Any = rest.pop(0)
            if getattr(act, "approximate", "none") != "none":  # of GELU
                return None
            options["act"] = _ACTIVATIONS[type(act)]
            if options["act"] == "lrelu":
                options["slope"] = act.negative_slope
            elif options["act"] == "prelu":
                options["slope"] = act.weight
        return None if rest else options


def _fits(conv: Any) -> bool:
    """Return whether the operation computes a convolution, with its own padding mode."""
    if not untouched(conv, nn.Conv2d) or conv.dilation != (1, 1) or conv.groups != 1:
        return False
    whole = not isinstance(conv.padding, str) and len(set(conv.padding)) == 1
    return whole and len(set(conv.stride)) == 1 and conv.padding_mode in _PADDING_MODES


class AdaINConv2d(nn.Conv2d):
    """A convolution with AdaIN (Huang and Belongie 2017) and an activation, in one.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: height and width of the filters, in pixels.
        stride: of the convolution, both axes.
        padding: pixels added on each side.
        padding_mode: what they hold: "zeros", "reflect" or "replicate".
        bias: whether there is one; the norm takes it away again, so it only keeps a key.
        eps: added to the variance.
        act: as in `fastunit.kernels.conv_norm_act`, but for "prelu".
        slope: negative slope of lrelu.

    Input [N, C, H, W] or [C, H, W]; gamma and beta, scale and shift of each sample, [N, K] or
    [N * K]; residual of the result's shape, added last.

    Raises:
        ValueError: padding_mode is none of these; from a call: shapes do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        padding_mode: str = "zeros",
        bias: bool = True,
        eps: float = 1e-5,
        act: Activation = "relu",
        slope: float = 0.2,
    ) -> None:
        mode: Any = padding_mode
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                f"padding_mode={padding_mode!r} must be one of {', '.join(_PADDING_MODES)}"
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding,
            bias=bias, padding_mode=mode,
        )  # fmt: skip
        self.eps, self.act, self.slope = eps, act, slope

    def forward(
        self, input: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        rows = len(input) if input.dim() == 4 else 1, self.out_channels
        options: dict[str, Any] = {
            "stride": self.stride, "padding": self.padding, "act": self.act, "slope": self.slope,
            "pad_mode": _PADDING_MODES[self.padding_mode], "residual": residual,
        }  # fmt: skip
        return conv_norm_act(
            input, self.weight, self.bias, norm="in", gamma=_rows("gamma", gamma, rows),
            beta=_rows("beta", beta, rows), eps=self.eps, **options,
        )  # fmt: skip


def _rows(name: str, value: Tensor, rows: tuple[int, int]) -> Tensor:
    """Return a parameter of each sample's channels as [N, K]."""
    samples, channels = rows
    if value.numel() != samples * channels:
        raise ValueError(
            f"{name} must be of shape {rows} or {(samples * channels,)}, not {tuple(value.shape)}"
        )
    return value.reshape(rows)
