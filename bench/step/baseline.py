"""Baselines of the training step: the same step without fastunit.

`BaselineStep` is the 2018 release's step in plain eager PyTorch; `strongest` the same networks
with all optimizations that PyTorch offers. Both reproduce the golden numbers
(tests/bench/step/test_baseline.py). Of fastunit only the configuration is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from fastunit.config import Config, DiscriminatorConfig, GeneratorConfig

Losses = dict[str, Tensor]
Noise = Mapping[str, Tensor]

_PADS = {"zero": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
_ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "lrelu": lambda: nn.LeakyReLU(0.2, inplace=True),
    "prelu": nn.PReLU,
    "selu": lambda: nn.SELU(inplace=True),
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class LayerNorm(nn.Module):
    """``(x - mean) / (std + eps) * gamma + beta`` of each sample, with the unbiased std."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (f(x.flatten(1), 1).view(-1, 1, 1, 1) for f in (torch.mean, torch.std))
        return (x - mean) / (std + 1e-5) * self.gamma.view(-1, 1, 1) + self.beta.view(-1, 1, 1)


_NORMS = {"none": nn.Identity, "bn": nn.BatchNorm2d, "in": nn.InstanceNorm2d, "ln": LayerNorm}


class Conv2dBlock(nn.Module):
    """Padding, convolution, norm and activation."""

    def __init__(
        self, dim: int, dim_out: int, taps: int, stride: int, norm: str, activ: str, pad: str
    ) -> None:
        super().__init__()
        self.pad = _PADS[pad]((taps - 1) // 2)
        self.norm = _NORMS[norm](dim_out)
        self.activation = _ACTIVATIONS[activ]()
        self.conv = nn.Conv2d(dim, dim_out, taps, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(self.pad(x))))


class ResBlock(nn.Module):
    """Two 3x3 blocks plus their input."""

    def __init__(self, dim: int, activ: str, pad_type: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            Conv2dBlock(dim, dim, 3, 1, "in", activ, pad_type),
            Conv2dBlock(dim, dim, 3, 1, "in", "none", pad_type),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).add_(x)


class Stack(nn.Module):
    """A sequence of layers, under the release's name `model`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class VAEGen(nn.Module):
    """Encoder and decoder of one domain."""

    def __init__(self, input_dim: int, options: GeneratorConfig) -> None:
        super().__init__()
        dim, style = options.dim, (options.activ, options.pad_type)
        encoder = [Conv2dBlock(input_dim, dim, 7, 1, "in", *style)]
        for _ in range(options.n_downsample):
            encoder.append(Conv2dBlock(dim, 2 * dim, 4, 2, "in", *style))
            dim *= 2
        encoder.append(Stack(*(ResBlock(dim, *style) for _ in range(options.n_res))))
        decoder = [Stack(*(ResBlock(dim, *style) for _ in range(options.n_res)))]
        for _ in range(options.n_downsample):
            decoder.append(nn.Upsample(scale_factor=2, mode="nearest"))
            decoder.append(Conv2dBlock(dim, dim // 2, 5, 1, "ln", *style))
            dim //= 2
        decoder.append(Conv2dBlock(dim, input_dim, 7, 1, "none", "tanh", options.pad_type))
        self.enc, self.dec = Stack(*encoder), Stack(*decoder)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return codes and the noise to add, standard normal unless `noise` is given."""
        hidden = self.enc(images)
        return hidden, torch.randn_like(hidden) if noise is None else noise

    def decode(self, hidden: Tensor) -> Tensor:
        return self.dec(hidden)


class MsImageDis(nn.Module):
    """Patch discriminators at several scales."""

    def __init__(self, input_dim: int, options: DiscriminatorConfig) -> None:
        super().__init__()
        self.gan_type = options.gan_type
        self.downsample = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.cnns = nn.ModuleList(_patch_net(input_dim, options) for _ in range(options.num_scales))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for net in self.cnns:
            outputs.append(net(x))
            x = self.downsample(x)
        return outputs

    def calc_dis_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        return self._score(self(fake), 0.0) + self._score(self(real), 1.0)

    def calc_gen_loss(self, fake: Tensor) -> Tensor:
        return self._score(self(fake), 1.0)

    def _score(self, outputs: list[Tensor], target: float) -> Tensor:
        """Return the sum of the scales' losses for a target of 0 or 1."""
        distance = F.mse_loss if self.gan_type == "lsgan" else F.binary_cross_entropy_with_logits
        return sum(distance(output, torch.full_like(output, target)) for output in outputs)


def _patch_net(input_dim: int, options: DiscriminatorConfig) -> nn.Sequential:
    dim, style = options.dim, (options.activ, options.pad_type)
    layers: list[nn.Module] = [Conv2dBlock(input_dim, dim, 4, 2, "none", *style)]
    for _ in range(options.n_layer - 1):
        layers.append(Conv2dBlock(dim, 2 * dim, 4, 2, options.norm, *style))
        dim *= 2
    return nn.Sequential(*layers, nn.Conv2d(dim, 1, 1))


class BaselineStep(nn.Module):
    """The release's training step: ``step(x_a, x_b) -> losses`` under the release's names.

    Each update encodes and decodes separately, one call per image and direction. The
    discriminators' update builds the generators' graph without using it, and the generators' update
    computes unused gradients of the discriminators' weights. All this is as in the release. The
    perceptual term and the learning-rate schedules, which cost next to nothing, are left out.

    Parameters have the names of fastunit's `UNIT` and PyTorch's initial values: load a state_dict.

    Raises:
        ValueError: weight sharing, vgg_w or identity_w, which this step does not have.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.share.enc or config.share.dec or config.vgg_w or config.identity_w:
            raise ValueError(
                "the baseline has no shared blocks and no perceptual term or identity term"
            )
        self.config = config
        self.gen_a = VAEGen(config.input_dim_a, config.gen)
        self.gen_b = VAEGen(config.input_dim_b, config.gen)
        self.dis_a = MsImageDis(config.input_dim_a, config.dis)
        self.dis_b = MsImageDis(config.input_dim_b, config.dis)
        self.dis_opt = _adam(config, self.dis_a, self.dis_b)
        self.gen_opt = _adam(config, self.gen_a, self.gen_b)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Losses:
        return self.dis_update(x_a, x_b) | self.gen_update(x_a, x_b)

    def dis_update(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        """Update the discriminators; noise "a", "b" is drawn unless given."""
        self.dis_opt.zero_grad()
        losses = self.dis_losses(x_a, x_b, noise or {})
        losses["loss_dis_total"].backward()
        self.dis_opt.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def gen_update(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        """Update the generators; noise "a", "b", "ba", "ab" is drawn unless given."""
        self.gen_opt.zero_grad()
        losses = self.gen_losses(x_a, x_b, noise or {})
        losses["loss_gen_total"].backward()
        self.gen_opt.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def translate(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return x_ba and x_ab."""
        h_a, n_a = self.gen_a.encode(x_a, noise.get("a"))
        h_b, n_b = self.gen_b.encode(x_b, noise.get("b"))
        return self.gen_a.decode(h_b + n_b), self.gen_b.decode(h_a + n_a)

    def dis_losses(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> Losses:
        x_ba, x_ab = self.translate(x_a, x_b, noise)
        loss_a = self.dis_a.calc_dis_loss(x_ba.detach(), x_a)
        loss_b = self.dis_b.calc_dis_loss(x_ab.detach(), x_b)
        total = self.config.gan_w * (loss_a + loss_b)
        return {"loss_dis_a": loss_a, "loss_dis_b": loss_b, "loss_dis_total": total}

    def gen_losses(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> Losses:
        config, gen_a, gen_b = self.config, self.gen_a, self.gen_b
        h_a, n_a = gen_a.encode(x_a, noise.get("a"))
        h_b, n_b = gen_b.encode(x_b, noise.get("b"))
        x_aa, x_bb = gen_a.decode(h_a + n_a), gen_b.decode(h_b + n_b)
        x_ba, x_ab = gen_a.decode(h_b + n_b), gen_b.decode(h_a + n_a)
        terms = {  # weight, loss
            "recon_x_a": (config.recon_x_w, F.l1_loss(x_aa, x_a)),
            "recon_x_b": (config.recon_x_w, F.l1_loss(x_bb, x_b)),
            "recon_kl_a": (config.recon_kl_w, _kl(h_a)),
            "recon_kl_b": (config.recon_kl_w, _kl(h_b)),
        }
        if config.recon_x_cyc_w > 0:
            h_ba, n_ba = gen_a.encode(x_ba, noise.get("ba"))
            h_ab, n_ab = gen_b.encode(x_ab, noise.get("ab"))
            x_aba, x_bab = gen_a.decode(h_ab + n_ab), gen_b.decode(h_ba + n_ba)
            terms |= {
                "cyc_x_a": (config.recon_x_cyc_w, F.l1_loss(x_aba, x_a)),
                "cyc_x_b": (config.recon_x_cyc_w, F.l1_loss(x_bab, x_b)),
                "recon_kl_cyc_aba": (config.recon_kl_cyc_w, _kl(h_ab)),
                "recon_kl_cyc_bab": (config.recon_kl_cyc_w, _kl(h_ba)),
            }
        terms["adv_a"] = config.gan_w, self.dis_a.calc_gen_loss(x_ba)
        terms["adv_b"] = config.gan_w, self.dis_b.calc_gen_loss(x_ab)
        total = sum(weight * loss for weight, loss in terms.values())
        return {f"loss_gen_{k}": v for k, (_, v) in terms.items()} | {"loss_gen_total": total}


class _StrongestStep(BaselineStep):
    """`BaselineStep` without unused computations, compiled; see `strongest`."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config)
        self.to(device, memory_format=torch.channels_last)
        self.dis_opt = _adam(config, self.dis_a, self.dis_b, fused=True)
        self.gen_opt = _adam(config, self.gen_a, self.gen_b, fused=True)
        # Compiled separately, networks would replay their CUDA graphs several times before one
        # backward, which PyTorch does not support; a loss with all its network calls runs once.
        mode = "max-autotune" if device.type == "cuda" else "default"
        for name in ("dis_losses", "gen_losses"):
            function = torch.compile(getattr(self, name), fullgraph=True, dynamic=False, mode=mode)
            setattr(self, name, function)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Losses:
        # A replay of a CUDA graph overwrites the results of the last: gradients and losses.
        self.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        return {name: loss.clone() for name, loss in super().forward(x_a, x_b).items()}

    def gen_update(self, x_a: Tensor, x_b: Tensor, noise: Noise | None = None) -> Losses:
        discriminators = nn.ModuleList([self.dis_a, self.dis_b]).requires_grad_(False)
        losses = super().gen_update(x_a, x_b, noise)
        discriminators.requires_grad_(True)
        return losses

    @torch.no_grad()
    def translate(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return super().translate(x_a, x_b, noise)

    def dis_losses(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> Losses:
        with _bf16(x_a.device):
            return super().dis_losses(x_a, x_b, noise)

    def gen_losses(self, x_a: Tensor, x_b: Tensor, noise: Noise) -> Losses:
        with _bf16(x_a.device):
            return super().gen_losses(x_a, x_b, noise)


def strongest(config: Config, device: torch.device) -> BaselineStep:
    """Return the fastest step with PyTorch alone, on `device`, for channels_last images.

    Nothing unused is computed; Adam is fused and both losses are compiled, on a GPU with bf16
    autocast, max-autotune and its CUDA graphs. The first step takes minutes.
    """
    return _StrongestStep(config, device)


def _adam(config: Config, *networks: nn.Module, **options: bool) -> Adam:
    weights = [weight for network in networks for weight in network.parameters()]
    betas = config.beta1, config.beta2
    return Adam(weights, config.lr, betas, weight_decay=config.weight_decay, **options)


def _bf16(device: torch.device) -> torch.autocast:
    """Return bf16 autocast on a GPU, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _kl(hidden: Tensor) -> Tensor:
    return hidden.square().mean()
