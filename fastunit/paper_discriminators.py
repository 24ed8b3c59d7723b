"""The discriminators of the UNIT paper's own release (2017), and the layers of its networks.

One module holds both domains' discriminators; `fastunit.paper` names them together with the
generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.adversary import Discriminator
from fastunit.kernels import norm_act
from fastunit.pairing import Pairing
from fastunit.paper_layers import ConvBlock
from fastunit.paper_options import DisOptions, SharedDisOptions, read
from fastunit.vae import check_image

SCALES = (1, 2, 4)

Outputs = tuple[Tensor, ...]


class PairDiscriminator(nn.Module):
    """Both domains' discriminators: what COCODis, COCOMsDis and COCOSharedDis have in common.

    Images are [N, C, H, W] in [-1, 1] of any size and floating dtype, with the domain's number
    of channels; the two domains' N, H and W may differ. Outputs are logits: of images from their
    domain they should be high.

    Attributes:
        domains: each domain's discriminator by its name, "a" or "b", of the same modules.
    """

    def __init__(
        self, options: DisOptions | SharedDisOptions, a: list[nn.Module], b: list[nn.Module]
    ) -> None:
        """Take each domain's networks, one for a scale; the caller registers them."""
        super().__init__()
        self.options, self.pairing = options, Pairing()
        how = {"gan_type": "nsgan", "halve": blur_downsample}
        self.domains = {  # in a dict, PyTorch does not take them for children
            "a": Discriminator(a, input_dim=options.input_dim_a, **how),
            "b": Discriminator(b, input_dim=options.input_dim_b, **how),
        }

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return each domain's logits as the release does: flattened, one tensor for a scale.

        Raises ValueError for images of other channels than the domain's.
        """
        outputs_a, outputs_b = self.discriminate(x_a, x_b)
        return [y.flatten() for y in outputs_a], [y.flatten() for y in outputs_b]

    def discriminate(self, x_a: Tensor, x_b: Tensor) -> tuple[Outputs, Outputs]:
        """Return each domain's logits [N, 1, P, Q], finest scale first.

        Layers that both domains share run once, where the sizes allow it.
        """
        a, b = self.domains["a"], self.domains["b"]
        check_image(x_a, a.input_dim)
        check_image(x_b, b.input_dim)
        return self.pairing.run_scales(a.cnns, b.cnns, x_a, x_b, a.halve)

    def discriminate_a(self, x: Tensor) -> Outputs:
        """Return domain a's part of `discriminate`."""
        return tuple(self.domains["a"](x))

    def discriminate_b(self, x: Tensor) -> Outputs:
        """Return domain b's part of `discriminate`."""
        return tuple(self.domains["b"](x))


class COCODis(PairDiscriminator):
    """One patch discriminator for each domain; logits of ceil(H / 2^n_layer) rows.

    params: ch, input_dim_a, input_dim_b, n_layer (a mapping, or DisOptions). Raises ValueError
    naming a key that is unknown, missing or of a wrong value.
    """

    def __init__(self, params: Mapping[str, Any] | DisOptions) -> None:
        options = read(DisOptions, params, "dis")
        a, b = (_patch_network(c, options) for c in (options.input_dim_a, options.input_dim_b))
        super().__init__(options, [a], [b])
        self.model_A, self.model_B = a, b


class COCOMsDis(PairDiscriminator):
    """Three patch discriminators for each domain: of the image, and of it halved once and twice.

    params: as COCODis.
    """

    def __init__(self, params: Mapping[str, Any] | DisOptions) -> None:
        options = read(DisOptions, params, "dis")
        a, b = (
            [_patch_network(channels, options) for _ in SCALES]
            for channels in (options.input_dim_a, options.input_dim_b)
        )
        super().__init__(options, a, b)
        for domain, networks in (("A", a), ("B", b)):
            for scale, network in zip(SCALES, networks, strict=True):
                self.add_module(f"model_{scale}_{domain}", network)


class COCOSharedDis(PairDiscriminator):
    """One patch discriminator for each domain, whose last layers both domains share.

    params: ch, input_dim_a, input_dim_b, n_front_layer, n_shared_layer (a mapping, or
    SharedDisOptions). Without shared layers each domain has its own logits' layer. Raises
    ValueError naming a key that is unknown, missing or of a wrong value.
    """

    def __init__(self, params: Mapping[str, Any] | SharedDisOptions) -> None:
        options = read(SharedDisOptions, params, "dis")
        a, b = (_front_network(c, options) for c in (options.input_dim_a, options.input_dim_b))
        dim, count = options.ch * 2 ** (options.n_front_layer - 1), options.n_shared_layer
        shared = nn.Sequential(*_halvings(dim, count))
        for network in [shared] if count else [a, b]:
            network.append(nn.Conv2d(dim * 2**count, 1, 1))
        super().__init__(options, [nn.Sequential(a, shared)], [nn.Sequential(b, shared)])
        self.model_A, self.model_B, self.model_S = a, b, shared


def blur_downsample(x: Tensor) -> Tensor:
    """Blur with the 3x3 Gaussian of 1/4, 1/2, 1/4 and keep every second pixel, from the first.

    [N, C, H, W] to [N, C, ceil(H / 2), ceil(W / 2)]; the border is replicated. The blur is two
    means over 2x2 pixels.
    """
    framed = norm_act(x, halo=1, pad_mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(framed, 2, stride=1), 2, stride=2)


def _patch_network(channels: int, options: DisOptions) -> nn.Sequential:
    dim, count = options.ch, options.n_layer - 1
    first = ConvBlock(nn.Conv2d(channels, dim, 3, 2, 1), "none", "lrelu")
    return nn.Sequential(first, *_halvings(dim, count), nn.Conv2d(dim * 2**count, 1, 1))


def _front_network(channels: int, options: SharedDisOptions) -> nn.Sequential:
    first = ConvBlock(nn.Conv2d(channels, options.ch, 7, 2, 3), "none", "lrelu")
    return nn.Sequential(first, *_halvings(options.ch, options.n_front_layer - 1))


def _halvings(dim: int, count: int) -> list[nn.Module]:
    """Return layers from `dim` channels on, each halving the size and doubling the channels."""
    widths = [dim * 2**i for i in range(count)]
    return [ConvBlock(nn.Conv2d(w, 2 * w, 3, 2, 1), "none", "lrelu") for w in widths]
