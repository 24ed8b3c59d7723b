"""MUNIT's networks and objective as plain functions (Huang, Liu, Belongie and Kautz 2018).

Written from the paper, on a state_dict under its release's keys, with PyTorch's functions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tensors import under

GEN = {"dim": 4, "n_res": 1, "n_downsample": 1, "style_dim": 3, "mlp_dim": 6}
State = Mapping[str, Tensor]


def munit(tiny: dict[str, Any], **changes: object) -> dict[str, Any]:
    """Return a configuration of tiny networks, from `tiny`; sections of `changes` replace whole."""
    own = {key: value for key, value in tiny.items() if key != "share"}
    return own | {"network": "munit", "gen": dict(GEN)} | changes


def block(
    state: State, x: Tensor, stride: int, pad: int, norm: str = "none", act: str = "relu",
    adain: list[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Padding by reflection, convolution, norm, activation."""
    x = F.pad(x, (pad,) * 4, mode="reflect")
    x = F.conv2d(x, state["conv.weight"], state["conv.bias"], stride)
    if norm == "ln":
        x = torch.stack([(s - s.mean()) / (s.std() + 1e-5) for s in x])
        x = x * state["norm.gamma"][:, None, None] + state["norm.beta"][:, None, None]
    elif norm != "none":
        centred = x - x.mean((2, 3), keepdim=True)
        x = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    if norm == "adain":
        assert adain is not None
        shift, scale = (adain.pop(0)[:, :, None, None] for _ in range(2))
        x = x * scale + shift
    return {"relu": F.relu, "tanh": torch.tanh, "none": lambda y: y}[act](x)


def residual(state: State, x: Tensor, norm: str, adain: list[Tensor] | None = None) -> Tensor:
    y = block(under(state, "model.0."), x, 1, 1, norm, "relu", adain)
    return x + block(under(state, "model.1."), y, 1, 1, norm, "none", adain)


def content(state: State, x: Tensor, halvings: int = 1, blocks: int = 1) -> Tensor:
    """The content encoder."""
    own = under(state, "enc_content.model.")
    x = block(under(own, "0."), x, 1, 3, "in")
    for index in range(1, halvings + 1):
        x = block(under(own, f"{index}."), x, 2, 1, "in")
    for index in range(blocks):
        x = residual(under(own, f"{halvings + 1}.model.{index}."), x, "in")
    return x


def style(state: State, x: Tensor) -> Tensor:
    """The style encoder: four halvings, the mean over all pixels, a linear layer; no norm."""
    own = under(state, "enc_style.model.")
    x = block(under(own, "0."), x, 1, 3)
    for index in range(1, 5):
        x = block(under(own, f"{index}."), x, 2, 1)
    return F.conv2d(x.mean((2, 3), keepdim=True), own["6.weight"], own["6.bias"])


def decode(state: State, c: Tensor, s: Tensor, halvings: int = 1, blocks: int = 1) -> Tensor:
    """The decoder, whose residual blocks take shift and scale of AdaIN from the style's network."""
    y = s.flatten(1)
    for index, act in enumerate((F.relu, F.relu, lambda each: each)):
        layer = f"mlp.model.{index}.fc."
        y = act(F.linear(y, state[f"{layer}weight"], state[f"{layer}bias"]))
    own, adain = under(state, "dec.model."), list(y.chunk(4 * blocks, 1))
    for index in range(blocks):
        c = residual(under(own, f"0.model.{index}."), c, "adain", adain)
    for index in range(halvings):
        c = c.repeat_interleave(2, 2).repeat_interleave(2, 3)
        c = block(under(own, f"{2 * index + 2}."), c, 1, 2, "ln")
    return block(under(own, f"{2 * halvings + 1}."), c, 1, 3, "none", "tanh")


def l1(x: Tensor, y: Tensor) -> Tensor:
    return (x.flatten(1) - y.flatten(1)).abs().sum() / x.numel()


def adversarial(outputs: Sequence[Tensor], target: int, kind: str) -> Tensor:
    """Least squares, or the logarithm of the probability of `target`, summed over scales."""
    if kind == "lsgan":
        terms = [((y - target) ** 2).mean() for y in outputs]
    else:
        terms = [-torch.log(torch.sigmoid(y if target else -y)).mean() for y in outputs]
    return torch.stack(terms).sum()


def objective(
    unit: Any, x_a: Tensor, x_b: Tensor, s_a: Tensor, s_b: Tensor, kind: str = "lsgan"
) -> dict[str, Tensor]:
    """Every loss but the weighted sums, by its name; the networks' own discriminators.

    s_a is the style of b translated to a, and s_b that of a translated to b.
    """
    a, b = (dict(each.named_parameters()) for each in (unit.gen_a, unit.gen_b))
    c_a, c_b = content(a, x_a), content(b, x_b)
    x_ba, x_ab = decode(a, c_b, s_a), decode(b, c_a, s_b)
    found_a, found_b = content(b, x_ab), content(a, x_ba)
    fake, real = [x_ba.detach(), x_ab.detach()], [x_a, x_b]
    return {
        "reconstruction_a": l1(decode(a, c_a, style(a, x_a)), x_a),
        "reconstruction_b": l1(decode(b, c_b, style(b, x_b)), x_b),
        "style_a": l1(style(a, x_ba), s_a),
        "style_b": l1(style(b, x_ab), s_b),
        "content_a": l1(found_a, c_a),
        "content_b": l1(found_b, c_b),
        "cycle_a": l1(decode(a, found_a, style(a, x_a)), x_a),
        "cycle_b": l1(decode(b, found_b, style(b, x_b)), x_b),
        "adversarial_a": adversarial(unit.dis_a(x_ba), 1, kind),
        "adversarial_b": adversarial(unit.dis_b(x_ab), 1, kind),
        **{
            f"discriminator_{name}": adversarial(dis(x), 1, kind) + adversarial(dis(y), 0, kind)
            for name, dis, x, y in zip("ab", (unit.dis_a, unit.dis_b), real, fake, strict=True)
        },
    }
