"""The perceptual term: distance of instance-normalised VGG16 features at relu5_3.

As in the 2018 release, only the first three blocks are followed by pooling.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit import files
from fastunit.errors import CheckpointError, ConfigError
from fastunit.kernels import norm_act

# Output channels of the convolutions of VGG16's five blocks (Simonyan and Zisserman 2015).
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLED_BLOCKS = 3
MEAN_BGR = (103.939, 116.779, 123.680)


class Perceptual(nn.Module):
    """Mean squared difference of two images' instance-normalised VGG16 features.

    Call with images [N, C, H, W] in [-1, 1], C 1 or 3 (one channel is repeated), sides of at
    least 8 pixels; the result is a scalar, differentiable in the first image. Frozen. Raises
    ValueError for other channels or smaller images.
    """

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], 3
        for block in BLOCKS:
            for width in block:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        self.convs = nn.ModuleList(layers)
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Return relu5_3's features [N, 512, H / 8, W / 8] of images in [-1, 1]."""
        if x.shape[1] not in (1, 3) or min(x.shape[2:]) < 8:
            raise ValueError(
                "the perceptual term takes images of 1 or 3 channels and 8 pixels a side or more, "
                f"not {tuple(x.shape)}; set vgg_w=0 to train without it"
            )
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        x = (x.flip(1) + 1) * 127.5 - self.mean
        convs = iter(self.convs)
        for index, block in enumerate(BLOCKS):
            for _ in block:
                x = F.relu(next(convs)(x))
            if index < POOLED_BLOCKS:
                x = F.max_pool2d(x, 2)
        return x

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = norm_act(self.features(target), norm="in")
        return (norm_act(self.features(output), norm="in") - wanted).square().mean()


def load_perceptual(path: str | Path | None) -> Perceptual:
    """Return the term with weights from a torchvision-format VGG16 state_dict file.

    The file's convolutions are `features.N.weight` and `features.N.bias`, expecting BGR input
    of 0..255 minus the mean as the release's do. Raises ConfigError when the path is missing or
    the file is not such a state_dict.
    """
    remedy = "give vgg_model_path=FILE.pth, or set vgg_w=0 to train without the perceptual term"
    if path is None:
        raise ConfigError(f"vgg_w is above 0 but vgg_model_path is not set; {remedy}")
    if not Path(path).is_file():
        raise ConfigError(f"vgg_model_path={str(path)!r} is not a file; {remedy}")
    try:
        state = files.read(Path(path))
    except CheckpointError as error:
        raise ConfigError(f"vgg_model_path={str(path)!r} cannot be read: {error}") from error
    network = Perceptual()
    _fill(network, state, path)
    return network


def _fill(network: Perceptual, state: dict[str, Tensor], path: str | Path) -> None:
    index = 0
    convs = iter(network.convs)
    for block in BLOCKS:
        for _ in block:
            conv = next(convs)
            for name, parameter in conv.named_parameters():
                key = f"features.{index}.{name}"
                value = state.get(key) if isinstance(state, dict) else None
                shape = tuple(value.shape) if isinstance(value, Tensor) else None
                if shape != parameter.shape:
                    found = "missing" if shape is None else f"of shape {shape}"
                    raise ConfigError(
                        f"vgg_model_path={str(path)!r} is not VGG16: {key} is {found}, "
                        f"expected {tuple(parameter.shape)}"
                    )
                with torch.no_grad():
                    parameter.copy_(value)
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling
