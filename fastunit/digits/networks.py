"""The UNIT paper's networks for digits, 32x32 pixels, with its release's names of parameters.

One generator and one discriminator serve both domains: the layers next to the images are each
domain's own, all others are shared. The discriminator has a second head, which names the digit.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.kernels import norm_act, reparameterize
from fastunit.models.unfused import say_plain, untouched
from fastunit.models.unit2017_layers import convolve
from fastunit.models.vae import check_image

SIZE = 32  # pixels a side
CLASSES = 10
SLOPE = 0.01  # of the generator's LeakyReLU
DROPOUTS = (0.1, 0.3, 0.5, 0.5)  # after the discriminator's layers 0 to 3

Images = tuple[Tensor, Tensor]  # one tensor of images for domain a, one for b


class Bias(nn.Module):
    """A learned number added to each channel of [N, channels, H, W]; 0 at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(x, beta=self.bias)


class Layer(nn.Module):
    """Convolution or transposed convolution, batch norm without weights, bias, LeakyReLU 0.01.

    `model` holds the layers in their places; `forward` runs the last two as one operation.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        channels = conv.out_channels
        norm = nn.BatchNorm2d(channels, affine=False)
        self.model = nn.Sequential(conv, norm, Bias(channels), nn.LeakyReLU(SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_whole():
            say_plain(type(self).__name__)
            return self.model(x)
        conv, norm, bias, _ = self.model
        y = convolve(conv, x).contiguous(memory_format=torch.channels_last)
        return norm_act(norm(y), beta=cast(Bias, bias).bias, act="lrelu", slope=SLOPE)

    def _is_whole(self) -> bool:
        """Return whether the last two modules are as they were built."""
        if not untouched(self.model, nn.Sequential) or len(self.model) != 4:
            return False
        bias, act = self.model[2], self.model[3]
        return (
            untouched(bias, Bias) and untouched(act, nn.LeakyReLU) and act.negative_slope == SLOPE
        )


class GaussianVAE(nn.Module):
    """The code's posterior N(mu, sd^2) with sd = softplus(en_sigma(x)), of any [N, dim, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.en_mu = nn.Conv2d(dim, dim, 1)
        self.en_sigma = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and what sd is the softplus of."""
        return convolve(self.en_mu, x), convolve(self.en_sigma, x)


class CoVAE32x32(nn.Module):
    """Both domains' variational autoencoders, which share the code and the layers around it.

    Args:
        gen_ch: channels next to the images; the code has 8 times as many.
        input_dim_a: channels of domain a's images.
        output_dim_a: channels of its results.
        input_dim_b: channels of domain b's images.
        output_dim_b: channels of its results.

    Images are [N, input_dim, 32, 32] in [-1, 1], any floating dtype; a code is
    [N, 8 * gen_ch, 1, 1]. In training mode batch norm takes the statistics of the batch, the
    shared layers those of both domains together.

    Raises:
        ValueError: a size is below 1; on a call: images do not fit.
    """

    def __init__(
        self,
        gen_ch: int,
        input_dim_a: int,
        output_dim_a: int,
        input_dim_b: int,
        output_dim_b: int,
    ) -> None:
        super().__init__()
        ch = gen_ch
        _positive(gen_ch=gen_ch, input_dim_a=input_dim_a, output_dim_a=output_dim_a)
        _positive(input_dim_b=input_dim_b, output_dim_b=output_dim_b)
        self.input_dim_a, self.input_dim_b = input_dim_a, input_dim_b
        self.code_dim = 8 * ch
        self.g_en_conv0_a = Layer(nn.Conv2d(input_dim_a, ch, 5, 2, 2))
        self.g_en_conv0_b = Layer(nn.Conv2d(input_dim_b, ch, 5, 2, 2))
        self.g_en_conv1 = Layer(nn.Conv2d(ch, 2 * ch, 5, 2, 2))
        self.g_en_conv2 = Layer(nn.Conv2d(2 * ch, 4 * ch, 8, 1, 0))
        self.g_en_conv3 = Layer(nn.Conv2d(4 * ch, 8 * ch, 1))
        self.g_vae = GaussianVAE(8 * ch)
        self.g_de_conv0 = Layer(nn.ConvTranspose2d(8 * ch, 8 * ch, 4, 2, 0))
        self.g_de_conv1 = Layer(nn.ConvTranspose2d(8 * ch, 4 * ch, 4, 2, 1))
        self.g_de_conv2 = Layer(nn.ConvTranspose2d(4 * ch, 2 * ch, 4, 2, 1))
        self.g_de_conv3_a = Layer(nn.ConvTranspose2d(2 * ch, ch, 4, 2, 1))
        self.g_de_conv3_b = Layer(nn.ConvTranspose2d(2 * ch, ch, 4, 2, 1))
        self.de_conv4_a = nn.ConvTranspose2d(ch, output_dim_a, 1)
        self.de_conv4_b = nn.ConvTranspose2d(ch, output_dim_b, 1)

    def forward(
        self, x_a: Tensor, x_b: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return both reconstructions and translations: x_aa, x_ba, x_ab, x_bb, (mu, sd).

        Args:
            x_a: images of domain a.
            x_b: images of domain b; N may differ.
            noise: unit normals of the code's shape, of a's batch, then b's, for
                z = mu + sd * noise. None draws them in training mode and leaves them out in
                evaluation mode.

        x_ba is b translated to a; mu and sd are of a's batch, then b's.
        """
        *images, posterior, _ = self.sample(x_a, x_b, noise)
        return *images, posterior

    def sample(self, x_a: Tensor, x_b: Tensor, noise: Tensor | None = None) -> tuple:
        """Return what `forward` does, and the divergence sum(mu^2 + sd^2 - log(sd^2)) / batch.

        The divergence, a scalar, sums over the code and is the mean over both batches. It is
        differentiable, like all of the results.
        """
        mu, raw = self.encode(x_a, x_b)
        if noise is None and not self.training:
            noise = torch.zeros_like(mu)
        z, kl = reparameterize(mu, raw, sigma="softplus", noise=noise, kl="normal")
        # The operation's divergence is half of the sum, less 1 for each value of the code.
        kl = 2 * kl + mu.shape[1:].numel()
        for_a, for_b = self.decode(z)
        x_aa, x_ba = for_a.split([len(x_a), len(x_b)])
        x_ab, x_bb = for_b.split([len(x_a), len(x_b)])
        return x_aa, x_ba, x_ab, x_bb, (mu, F.softplus(raw)), kl

    def encode(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu of both batches, a's first, and what sd is the softplus of."""
        _check_images(x_a, self.input_dim_a)
        _check_images(x_b, self.input_dim_b)
        h = torch.cat([self.g_en_conv0_a(x_a), self.g_en_conv0_b(x_b)])
        return self.g_vae(self.g_en_conv3(self.g_en_conv2(self.g_en_conv1(h))))

    def decode(self, z: Tensor) -> Images:
        """Return domain a's images and domain b's images of the same codes."""
        h = self.g_de_conv2(self.g_de_conv1(self.g_de_conv0(z)))
        return (
            convolve(self.de_conv4_a, self.g_de_conv3_a(h), act="tanh"),
            convolve(self.de_conv4_b, self.g_de_conv3_b(h), act="tanh"),
        )


class CoDis32x32(nn.Module):
    """Both domains' discriminators and digit classifiers, which share all but the first layer.

    Args:
        dis_ch: channels after the first layer; the last has 8 times as many.
        input_dim_a: channels of domain a's images.
        input_dim_b: channels of domain b's images.

    Images are [N, input_dim, 32, 32] in [-1, 1], any floating dtype. Dropout acts in training
    mode, on what the heads see.

    Raises:
        ValueError: a size is below 1; on a call: images do not fit.
    """

    def __init__(self, dis_ch: int, input_dim_a: int, input_dim_b: int) -> None:
        super().__init__()
        _positive(dis_ch=dis_ch, input_dim_a=input_dim_a, input_dim_b=input_dim_b)
        self.input_dim_a, self.input_dim_b = input_dim_a, input_dim_b
        self.conv0_a = _pooled(input_dim_a, dis_ch)
        self.conv0_b = _pooled(input_dim_b, dis_ch)
        self.conv1 = _pooled(dis_ch, 2 * dis_ch)
        self.conv2 = _pooled(2 * dis_ch, 4 * dis_ch)
        self.conv3 = _pooled(4 * dis_ch, 8 * dis_ch)
        self.conv4 = nn.Conv2d(8 * dis_ch, 2, 2)
        self.conv_cl = nn.Conv2d(8 * dis_ch, CLASSES, 2)

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of fake (0) and real (1) [N_a + N_b, 2], a's first, and features.

        The features of a, then those of b, [N, 8 * dis_ch, 2, 2], are taken without dropout.
        """
        first = self.first(x_a, x_b)
        features_a, features_b = self.features(first).split([len(x_a), len(x_b)])
        return self.discriminate(self.dropped(first)), features_a, features_b

    def classify_a(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits [N, 10] for images of domain a."""
        return self.classify(self.dropped(self.first(x, None)))

    def classify_b(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits [N, 10] for images of domain b."""
        return self.classify(self.dropped(self.first(None, x)))

    def first(self, x_a: Tensor | None, x_b: Tensor | None) -> Tensor:
        """Return the first layers' results, [N_a + N_b, dis_ch, 16, 16]: all below go on here.

        None, for one of the two, stands for no images of that domain.
        """
        domains = (
            (x_a, self.input_dim_a, self.conv0_a),
            (x_b, self.input_dim_b, self.conv0_b),
        )
        given = [(x, channels, layer) for x, channels, layer in domains if x is not None]
        for x, channels, _ in given:
            _check_images(x, channels)
        return torch.cat([_pool(layer, x) for x, _, layer in given])

    def features(self, first: Tensor) -> Tensor:
        """Return what the shared layers see in the first layers' results, without dropout."""
        for layer in (self.conv1, self.conv2, self.conv3):
            first = _pool(layer, first)
        return first

    def dropped(self, first: Tensor) -> Tensor:
        """Return the features that the heads see: with dropout, in training mode."""
        h = F.dropout(first, DROPOUTS[0], self.training)
        for layer, share in zip((self.conv1, self.conv2, self.conv3), DROPOUTS[1:], strict=True):
            h = F.dropout(_pool(layer, h), share, self.training)
        return h

    def discriminate(self, dropped: Tensor) -> Tensor:
        """Return the logits of fake and real, [N, 2]."""
        return convolve(self.conv4, dropped).flatten(1)

    def classify(self, dropped: Tensor) -> Tensor:
        """Return the logits of the ten digits, [N, 10]."""
        return convolve(self.conv_cl, dropped).flatten(1)


def copy_own_layers(network: CoVAE32x32 | CoDis32x32) -> None:
    """Give domain b's own layers the values of domain a's, where shapes agree."""
    for name, layer in network.named_children():
        if name.endswith("_a"):
            twin = getattr(network, f"{name.removesuffix('_a')}_b")
            own = twin.state_dict()
            state = layer.state_dict()
            twin.load_state_dict(
                {k: state[k] if state[k].shape == v.shape else v for k, v in own.items()}
            )


def _pooled(input_dim: int, output_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(input_dim, output_dim, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(2))


def _pool(layer: nn.Sequential, x: Tensor) -> Tensor:
    """Apply a `_pooled` layer.

    A maximum passes through ReLU unchanged, so pooling comes first: a quarter of the work. One
    channel has no memory format of its own, and PyTorch pools contiguous images far slower.
    """
    if not (untouched(layer, nn.Sequential) and len(layer) == 3 and _pools(*layer)):
        say_plain("_pooled")
        return layer(x)
    conv, relu, pool = layer
    return relu(pool(conv(x).contiguous(memory_format=torch.channels_last)))


def _pools(conv: nn.Module, relu: nn.Module, pool: nn.Module) -> bool:
    return untouched(relu, nn.ReLU) and untouched(pool, nn.MaxPool2d)


def _check_images(x: Tensor, channels: int) -> None:
    check_image(x, channels)
    if x.shape[2:] != (SIZE, SIZE):
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} pixels do not fit a network for "
            f"{SIZE}x{SIZE}; resize them"
        )


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
