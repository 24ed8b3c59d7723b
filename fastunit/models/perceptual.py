"""The perceptual term: distance of instance-normalized VGG16 features at relu5_3.

As in the 2018 release, only the first three blocks are followed by pooling. Weights are loaded
from a file with torchvision's key names; `load_perceptual` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common import files
from fastunit.common.errors import CheckpointError, ConfigError
from fastunit.kernels import norm_act
from fastunit.kernels.common import runtime
from fastunit.models.layers import moved

# Output channels of the convolutions of VGG16's five blocks (Simonyan and Zisserman 2015).
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLED_BLOCKS = 3
SHRINKS = 2**POOLED_BLOCKS
MEAN_BGR = (103.939, 116.779, 123.680)
LARGEST_FILE = 1200 * 10**6  # bytes; all of VGG16 with its classifier is 1,107 MB in float64
Weights = list[tuple[Tensor, Tensor]]
REMEDY = "give vgg_model_path=FILE.pth, or set vgg_w=0 to train without the perceptual term"


class Perceptual(nn.Module):
    """Mean squared difference of two images' instance-normalized VGG16 features.

    Call with images [N, C, H, W] in [-1, 1], C 1 or 3 (one channel is repeated), of at least
    8x16 or 16x8 pixels. The result is a scalar, differentiable with respect to the first image.
    The weights are frozen.

    Convolutions run in the images' dtype or autocast's, with float16 widened to float32: features
    of 0..255 images can exceed its largest value. Normalization, difference and result are
    float32, or float64 for float64 images.

    To compare several images with one target, compute its features once:
    ``distance(output, target_features(target))``. `pair` compares the images of both domains.

    Raises:
        ValueError: on a call: wrong channels, images too small, or images of different sizes.
    """

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], 3
        for block in BLOCKS:
            for width in block:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        self.convs = nn.ModuleList(layers)
        self.requires_grad_(False)

    def features(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        """Return relu5_3's features [N, 512, H / 8, W / 8] of images [N, C, H, W] in [-1, 1].

        `weights` are those of `weights_for` the images, for several calls.
        """
        _check_images(x)
        dtype, layers = _dtype(x), iter(self.weights_for(x) if weights is None else weights)
        with runtime.no_autocast(x):
            x = as_vgg_takes(x).to(dtype, memory_format=torch.channels_last)
            for index, block in enumerate(BLOCKS):
                for _ in block:
                    x = F.relu(F.conv2d(x, *next(layers), padding=1))
                if index < POOLED_BLOCKS:
                    x = F.max_pool2d(x, 2)
        return x

    def weights_for(self, x: Tensor) -> Weights:
        """Return the convolutions' weights and biases in the dtype in which images run."""
        dtype = _dtype(x)
        convs: Any = self.convs
        return [(conv.weight.to(dtype), conv.bias.to(dtype)) for conv in convs]

    @torch.no_grad()
    def target_features(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        """Return the normalized features of a target for `distance`, without gradient."""
        return self._normalised(x, weights)

    def distance(self, output: Tensor, wanted: Tensor) -> Tensor:
        """Return the distance of images from a target's `target_features`, a scalar."""
        return _mean_square(self._normalised(output), wanted)

    def pair(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return ``self(output, target)`` for each pair, up to rounding.

        Images of equal [C, H, W] go through the network in one batch.
        """
        weights = self.weights_for(outputs[0])
        wanted = _together(partial(self.target_features, weights=weights), targets)
        found = _together(partial(self._normalised, weights=weights), outputs)
        return tuple(_mean_square(*each) for each in zip(found, wanted, strict=True))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.distance(output, self.target_features(target))

    def _normalised(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        features = self.features(x, weights)
        return norm_act(_widened(features), norm="in")


def _check_images(x: Tensor) -> None:
    channels, height, width = x.shape[1:] if x.dim() == 4 else (0, 0, 0)
    # Instance norm of a single pixel is 0, and the term would always be 0.
    if channels not in (1, 3) or (height // SHRINKS) * (width // SHRINKS) < 2:
        raise ValueError(
            "the perceptual term takes images [N, C, H, W] of 1 or 3 channels and at least 8x16 "
            f"or 16x8 pixels, not {tuple(x.shape)}; set vgg_w=0 to train without it"
        )


def _dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of an image's convolutions."""
    dtype = runtime.autocast(x[:0]).dtype
    return torch.float32 if dtype == torch.float16 else dtype


def as_vgg_takes(x: Tensor) -> Tensor:
    """Return images in [-1, 1] as BGR of 0..255 minus the mean, in float32 or wider."""
    x = (_widened(x) + 1) * 127.5
    planes = reversed(x.expand(-1, 3, -1, -1).unbind(1))
    return torch.stack([c - mean for c, mean in zip(planes, MEAN_BGR, strict=True)], 1)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_square(found: Tensor, wanted: Tensor) -> Tensor:
    if found.shape != wanted.shape:
        raise ValueError(
            f"features of shape {tuple(found.shape)} cannot be compared with ones of shape "
            f"{tuple(wanted.shape)}: the images must be as many and of one size"
        )
    return (found - wanted).square().mean()


def _together(run: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return `run` of each batch of images; in one call if their shapes and dtypes agree."""
    if len({(x.shape[1:], x.dtype) for x in images}) > 1:
        return [run(x) for x in images]
    return run(torch.cat(list(images))).split([len(x) for x in images])


def load_perceptual(path: str | Path | None) -> Perceptual:
    """Return the term with weights from a VGG16 state_dict file.

    Args:
        path: the file, with torchvision's key names. Its convolutions are `features.N.weight` and
            `features.N.bias`, of any floating dtype, for BGR input of 0..255 minus the mean, as
            in the release. Other keys, such as the classifier's, are ignored.

    Raises:
        ConfigError: the path is None or missing, or the file is not such a state_dict.
    """
    if path is None:
        raise ConfigError(f"vgg_w is above 0 but vgg_model_path is not set; {REMEDY}")
    if not Path(path).is_file():
        raise ConfigError(f"vgg_model_path={str(path)!r} is not a file; {REMEDY}")
    if (size := Path(path).stat().st_size) > LARGEST_FILE:
        raise _refusal(path, f"{size / 1e6:,.0f} MB, where VGG16 has at most 1,107")
    try:
        state = files.read(Path(path))
    except CheckpointError as error:
        raise ConfigError(
            f"vgg_model_path={str(path)!r} cannot be read: {error}; {REMEDY}"
        ) from error
    if not isinstance(state, dict):
        raise _refusal(path, f"it holds {type(state).__name__}, expected a state_dict")
    network = moved(Perceptual())
    for key, parameter in _named(network):
        with torch.no_grad():
            parameter.copy_(_checked(state.get(key), key, parameter.shape, path))
    return network


def _named(network: Perceptual) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the network's parameters with torchvision's key names."""
    index, convs = 0, iter(network.convs)
    for block in BLOCKS:
        for _ in block:
            for name, parameter in next(convs).named_parameters():
                yield f"features.{index}.{name}", parameter
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling


def _checked(value: Any, key: str, shape: torch.Size, path: str | Path) -> Tensor:
    """Return a value from the file in float32 if it fits the parameter, else raise ConfigError."""
    expected = f"expected {tuple(shape)}"
    if value is None:
        raise _refusal(path, f"{key} is missing, {expected}")
    if not isinstance(value, Tensor):
        raise _refusal(path, f"{key} is of type {type(value).__name__}, {expected}")
    if value.shape != shape:
        raise _refusal(path, f"{key} is of shape {tuple(value.shape)}, {expected}")
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise _refusal(
            path,
            f"{key} is {value.dtype}, {value.layout} on {value.device}, expected floating values",
        )
    value = value.to(torch.float32)
    if not value.isfinite().all():
        raise _refusal(path, f"{key} holds values that are not finite in float32")
    return value


def _refusal(path: str | Path, reason: str) -> ConfigError:
    return ConfigError(f"vgg_model_path={str(path)!r} is not VGG16: {reason}; {REMEDY}")
