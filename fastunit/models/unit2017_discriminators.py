"""The discriminators of the UNIT paper's release (2017), with its names and state_dict keys.

One module holds both domains' discriminators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastunit.config.schema2017 import DisOptions, SharedDisOptions, read
from fastunit.kernels import norm_act
from fastunit.models.discriminator import Discriminator, widened
from fastunit.models.grouped import GroupedExecution
from fastunit.models.score import ScoreConv2d
from fastunit.models.unit2017_layers import ConvBlock, TwoDomainModule

SCALES = (1, 2, 4)

Outputs = tuple[Tensor, ...]


class PairDiscriminator(TwoDomainModule):
    """Both domains' discriminators: the base of COCODis, COCOMsDis and COCOSharedDis.

    Images are [N, C, H, W] in [-1, 1] of any size and floating dtype, with the domain's number
    of channels; the two domains' N, H and W may differ. Outputs are logits, high for real images.
    """

    def __init__(self, options: DisOptions | SharedDisOptions) -> None:
        super().__init__()
        self.options, self.execution = options, GroupedExecution()

    def _networks(self, domain: str) -> list[nn.Module]:
        """Return the networks of domain "A" or "B", one per scale."""
        raise NotImplementedError

    def _make_domains(self) -> dict[str, Discriminator]:
        channels = {"a": self.options.input_dim_a, "b": self.options.input_dim_b}
        return {
            name: Discriminator(
                self._networks(name.upper()),
                input_dim=channels[name],
                gan_type="nsgan",
                halve=blur_downsample,
            )
            for name in "ab"
        }

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return each domain's logits as the release does: flattened, one tensor per scale.

        Args:
            x_a: images of domain a.
            x_b: images of domain b.

        Raises:
            ValueError: images do not have their domain's channels.
        """
        outputs_a, outputs_b = self.discriminate(x_a, x_b)
        return [y.flatten() for y in outputs_a], [y.flatten() for y in outputs_b]

    def discriminate(self, x_a: Tensor, x_b: Tensor) -> tuple[Outputs, Outputs]:
        """Return each domain's logits [N, 1, P, Q], finest scale first.

        Layers that both domains share run once if the image sizes are equal.
        """
        return self.execution.discriminate(self.domains["a"], self.domains["b"], x_a, x_b)

    def discriminate_a(self, x: Tensor) -> Outputs:
        """Return domain a's result of `discriminate`."""
        return tuple(self.domains["a"](x))

    def discriminate_b(self, x: Tensor) -> Outputs:
        """Return domain b's result of `discriminate`."""
        return tuple(self.domains["b"](x))


class COCODis(PairDiscriminator):
    """One patch discriminator per domain; the logits have ceil(H / 2^n_layer) rows.

    Args:
        params: ch, input_dim_a, input_dim_b, n_layer; a mapping, or DisOptions.

    Raises:
        ValueError: a key is unknown, missing or of a wrong value; the message names it.
    """

    def __init__(self, params: Mapping[str, Any] | DisOptions) -> None:
        options = read(DisOptions, params, "dis", type(self).__name__)
        super().__init__(options)
        self.model_A = _patch_network(options.input_dim_a, options)
        self.model_B = _patch_network(options.input_dim_b, options)

    def _networks(self, domain: str) -> list[nn.Module]:
        return [getattr(self, f"model_{domain}")]


class COCOMsDis(PairDiscriminator):
    """Three patch discriminators per domain: on the image, and on it halved once and twice.

    Args:
        params: as `COCODis`.

    Raises:
        ValueError: as `COCODis`.
    """

    def __init__(self, params: Mapping[str, Any] | DisOptions) -> None:
        options = read(DisOptions, params, "dis", type(self).__name__)
        super().__init__(options)
        for domain, channels in (("A", options.input_dim_a), ("B", options.input_dim_b)):
            for scale in SCALES:
                setattr(self, f"model_{scale}_{domain}", _patch_network(channels, options))

    def _networks(self, domain: str) -> list[nn.Module]:
        return [getattr(self, f"model_{scale}_{domain}") for scale in SCALES]


class COCOSharedDis(PairDiscriminator):
    """One patch discriminator per domain; both domains share the last layers.

    Without shared layers, each domain has its own layer of logits.

    Args:
        params: ch, input_dim_a, input_dim_b, n_front_layer, n_shared_layer; a mapping, or
            SharedDisOptions.

    Raises:
        ValueError: a key is unknown, missing or of a wrong value; the message names it.
    """

    def __init__(self, params: Mapping[str, Any] | SharedDisOptions) -> None:
        options = read(SharedDisOptions, params, "dis", type(self).__name__)
        super().__init__(options)
        self.model_A = _front_network(options.input_dim_a, options)
        self.model_B = _front_network(options.input_dim_b, options)
        dim, count = options.ch * 2 ** (options.n_front_layer - 1), options.n_shared_layer
        self.model_S = nn.Sequential(*_halvings(dim, count))
        for network in [self.model_S] if count else [self.model_A, self.model_B]:
            network.append(ScoreConv2d(dim * 2**count))

    def _networks(self, domain: str) -> list[nn.Module]:
        return [nn.Sequential(getattr(self, f"model_{domain}"), self.model_S)]


def blur_downsample(x: Tensor) -> Tensor:
    """Blur with the 3x3 filter (1/4, 1/2, 1/4) per axis and keep every second pixel from the first.

    [N, C, H, W] to [N, C, ceil(H / 2), ceil(W / 2)]; the border is replicated. Summed in float32
    or wider. Not by pooling, which torch.compile (2.13) cannot fuse on the CPU.
    """
    y = widened(norm_act(x, halo=1, pad_mode="replicate"))
    y = (y[:, :, :-2:2] + 2 * y[:, :, 1:-1:2] + y[:, :, 2::2]) / 4
    y = (y[..., :-2:2] + 2 * y[..., 1:-1:2] + y[..., 2::2]) / 4
    return y.to(x.dtype)


def _patch_network(channels: int, options: DisOptions) -> nn.Sequential:
    dim, count = options.ch, options.n_layer - 1
    first = ConvBlock(nn.Conv2d(channels, dim, 3, 2, 1), "none", "lrelu")
    return nn.Sequential(first, *_halvings(dim, count), ScoreConv2d(dim * 2**count))


def _front_network(channels: int, options: SharedDisOptions) -> nn.Sequential:
    first = ConvBlock(nn.Conv2d(channels, options.ch, 7, 2, 3), "none", "lrelu")
    return nn.Sequential(first, *_halvings(options.ch, options.n_front_layer - 1))


def _halvings(dim: int, count: int) -> list[nn.Module]:
    """Return `count` layers, the first of `dim` channels; each halves the size and doubles them."""
    widths = [dim * 2**i for i in range(count)]
    return [ConvBlock(nn.Conv2d(w, 2 * w, 3, 2, 1), "none", "lrelu") for w in widths]
