"""Networks of other projects, written plainly from their papers: what `accelerate` is tried on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CycleResBlock(nn.Module):
    """Two 3x3 convolutions with reflect padding and instance norm; the input is added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(dim, dim, 3),
            nn.InstanceNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(dim, dim, 3),
            nn.InstanceNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def cyclegan_layers(dim: int, blocks: int) -> list[nn.Module]:
    """c7s1-k, d2k, d4k, R4k, ..., u2k, uk, c7s1-3 (Zhu et al. 2017, appendix 7.2)."""

    def down(c: int) -> list[nn.Module]:
        conv = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        return [conv, nn.InstanceNorm2d(2 * c), nn.ReLU(inplace=True)]

    def up(c: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)
        return [conv, nn.InstanceNorm2d(c // 2), nn.ReLU(inplace=True)]

    first = [nn.ReflectionPad2d(3), nn.Conv2d(3, dim, 7), nn.InstanceNorm2d(dim), nn.ReLU(True)]
    middle = [CycleResBlock(4 * dim) for _ in range(blocks)]
    last = [nn.ReflectionPad2d(3), nn.Conv2d(dim, 3, 7), nn.Tanh()]
    return [*first, *down(dim), *down(2 * dim), *middle, *up(4 * dim), *up(2 * dim), *last]


class CycleGenerator(nn.Module):
    """CycleGAN's generator."""

    def __init__(self, dim: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.model = nn.Sequential(*cyclegan_layers(dim, blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class CutGenerator(nn.Module):
    """CycleGAN's generator whose activations at some layers are features too (Park et al. 2020)."""

    def __init__(self, dim: int = 8, blocks: int = 2, taps: tuple[int, ...] = (0, 4, 5, 9, 10)):
        super().__init__()
        self.model = nn.Sequential(*cyclegan_layers(dim, blocks))
        self.taps = taps

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return x, features


class PatchGan(nn.Module):
    """The 70x70 patch discriminator (Isola et al. 2017, appendix 6.1.2)."""

    def __init__(self, dim: int = 8, norm: Callable[[int], nn.Module] = nn.InstanceNorm2d) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, dim, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            conv = nn.Conv2d(factor * dim, 2 * factor * dim, 4, stride, 1)
            layers += [conv, norm(2 * factor * dim), nn.LeakyReLU(0.2, True)]
        self.model = nn.Sequential(*layers, nn.Conv2d(8 * dim, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class UnetLevel(nn.Module):
    """One level of pix2pix's U-Net: down, the levels below, up, and the input beside it.

    The in-place activation changes the input, which the skip connection then carries.
    """

    def __init__(self, outer: int, inner: int, below: nn.Module | None) -> None:
        super().__init__()
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(outer, inner, 4, 2, 1)]
        up = nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1)
        middle = [] if below is None else [nn.InstanceNorm2d(inner), below]
        self.model = nn.Sequential(*down, *middle, nn.ReLU(True), up, nn.InstanceNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


class Unet(nn.Module):
    """pix2pix's U-Net (Isola et al. 2017, appendix 6.1.1), with instance norm."""

    def __init__(self, dim: int = 4, depth: int = 3) -> None:
        super().__init__()
        level, width = UnetLevel(4 * dim, 8 * dim, None), 4 * dim
        for _ in range(depth - 2):
            level, width = UnetLevel(width // 2, width, level), width // 2
        up = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)
        self.model = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), level, nn.ReLU(True), up, nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SampleLayerNorm(nn.Module):
    """Over all values of a sample, with the unbiased deviation plus eps (MUNIT's and UNIT's)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta, self.eps = nn.Parameter(torch.zeros(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        ones = [1] * (x.dim() - 1)
        rows = x.reshape(x.size(0), -1)
        mean, std = rows.mean(1).view(-1, *ones), rows.std(1).view(-1, *ones)
        x = (x - mean) / (std + self.eps)
        per_channel = (1, -1, *ones[1:])
        return x * self.gamma.view(*per_channel) + self.beta.view(*per_channel)


class AdaptiveNorm(nn.Module):
    """AdaIN (Huang and Belongie 2017) as a batch norm of samples' channels, all side by side."""

    weight: Tensor  # [N * C], from the style's network
    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.size(0), x.size(1)
        mean, var = self.running_mean.repeat(n), self.running_var.repeat(n)
        rows = x.contiguous().view(1, n * c, *x.size()[2:])
        y = F.batch_norm(rows, mean, var, self.weight, self.bias, True, 0.1, 1e-5)
        return y.view(n, c, *x.size()[2:])


class Block(nn.Module):
    """Padding, convolution, norm and activation, as modules."""

    def __init__(
        self, c: int, k: int, taps: int, stride: int, pad: int, norm: str, act: str = "relu"
    ) -> None:
        super().__init__()
        norms = {"in": nn.InstanceNorm2d, "ln": SampleLayerNorm, "adain": AdaptiveNorm}
        acts = {"relu": nn.ReLU(inplace=True), "lrelu": nn.LeakyReLU(0.2, True), "tanh": nn.Tanh()}
        self.pad, self.conv = nn.ReflectionPad2d(pad), nn.Conv2d(c, k, taps, stride)
        self.norm = norms[norm](k) if norm != "none" else None
        self.activation = acts[act] if act != "none" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pad(x))
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ResidualBlock(nn.Module):
    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        first, second = Block(dim, dim, 3, 1, 1, norm), Block(dim, dim, 3, 1, 1, norm, "none")
        self.model = nn.Sequential(first, second)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + x


def encoder(dim: int, count: int) -> list[nn.Module]:
    blocks: list[nn.Module] = [Block(3, dim, 7, 1, 3, "in")]
    for _ in range(2):
        blocks.append(Block(dim, 2 * dim, 4, 2, 1, "in"))
        dim *= 2
    return [*blocks, *(ResidualBlock(dim, "in") for _ in range(count))]


def decoder(dim: int, count: int, norm: str) -> list[nn.Module]:
    blocks: list[nn.Module] = [ResidualBlock(dim, norm) for _ in range(count)]
    for _ in range(2):
        blocks += [nn.Upsample(scale_factor=2), Block(dim, dim // 2, 5, 1, 2, "ln")]
        dim //= 2
    return [*blocks, Block(dim, 3, 7, 1, 3, "none", "tanh")]


class UnitGenerator(nn.Module):
    """UNIT's generator with a code of variance 1 (Liu et al. 2017, in the layers of 2018)."""

    def __init__(self, dim: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.enc = nn.Sequential(*encoder(dim, blocks))
        self.dec = nn.Sequential(*decoder(4 * dim, blocks, "in"))

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.enc(x))


class UnitDiscriminator(nn.Module):
    """UNIT's discriminators, one per scale."""

    def __init__(self, dim: int = 4, scales: int = 2) -> None:
        super().__init__()
        widths = [3, dim, 2 * dim, 4 * dim]
        self.nets = nn.ModuleList(
            nn.Sequential(
                *(Block(*pair, 4, 2, 1, "none", "lrelu") for pair in pairwise(widths)),
                nn.Conv2d(widths[-1], 1, 1),
            )
            for _ in range(scales)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = []
        for net in self.nets:
            scores.append(net(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return scores


class MunitGenerator(nn.Module):
    """MUNIT's auto-encoder (Huang et al. 2018): content, style, and AdaIN's parameters from it."""

    def __init__(self, dim: int = 4, blocks: int = 2, style: int = 8) -> None:
        super().__init__()
        self.content = nn.Sequential(*encoder(dim, blocks))
        down = [Block(3, dim, 7, 1, 3, "none")]
        down += [Block(c, 2 * c, 4, 2, 1, "none") for c in (dim, 2 * dim)]
        down += [Block(4 * dim, 4 * dim, 4, 2, 1, "none") for _ in range(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * dim, style, 1)]
        self.style = nn.Sequential(*down, *head)
        self.dec = nn.Sequential(*decoder(4 * dim, blocks, "adain"))
        self.norms = [m for m in self.dec.modules() if isinstance(m, AdaptiveNorm)]
        wide = 2 * sum(norm.channels for norm in self.norms)
        self.mlp = nn.Sequential(nn.Linear(style, 16), nn.ReLU(True), nn.Linear(16, wide))

    def forward(self, x: Tensor) -> Tensor:
        content, parameters = self.content(x), self.mlp(self.style(x).flatten(1))
        for norm in self.norms:
            norm.bias = parameters[:, : norm.channels].contiguous().view(-1)
            norm.weight = parameters[:, norm.channels : 2 * norm.channels].contiguous().view(-1)
            parameters = parameters[:, 2 * norm.channels :]
        return self.dec(content)


class NnUnet(nn.Module):
    """A small nnU-Net (Isensee et al. 2021): affine instance norm, leaky ReLU, strided stages."""

    def __init__(self, dim: int = 8, classes: int = 3) -> None:
        super().__init__()

        def stage(c: int, k: int, stride: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels, step in ((c, stride), (k, 1)):
                conv = nn.Conv2d(channels, k, 3, step, 1)
                norm = nn.InstanceNorm2d(k, eps=1e-5, affine=True)
                layers += [conv, norm, nn.LeakyReLU(0.01, inplace=True)]
            return nn.Sequential(*layers)

        self.down = nn.ModuleList([stage(3, dim, 1), stage(dim, 2 * dim, 2)])
        self.bottom = stage(2 * dim, 4 * dim, 2)
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, c // 2, 2, 2) for c in (4 * dim, 2 * dim)])
        self.merge = nn.ModuleList([stage(4 * dim, 2 * dim, 1), stage(2 * dim, dim, 1)])
        self.head = nn.Conv2d(dim, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CycleGAN generator": CycleGenerator,
    "CUT generator": CutGenerator,
    "PatchGAN": PatchGan,
    "pix2pix U-Net": Unet,
    "UNIT generator": UnitGenerator,
    "UNIT discriminator": UnitDiscriminator,
    "MUNIT AdaINGen": MunitGenerator,
    "nnU-Net": NnUnet,
}
