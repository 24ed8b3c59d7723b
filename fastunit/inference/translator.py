"""Translation of tensors, NumPy arrays and Pillow images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fastunit.common import devices
from fastunit.common import precision as precisions
from fastunit.common.choices import Direction, Precision
from fastunit.common.errors import CheckpointError, DataError, UserError
from fastunit.config import Config
from fastunit.inference.exported import ExportedNetworks
from fastunit.inference.memory import Memory
from fastunit.models.domain_pair import DomainPair, evaluating
from fastunit.models.layers import moved
from fastunit.models.styled_pair import StyledPair

if TYPE_CHECKING:
    from PIL.Image import Image

Tile = int | Literal["auto", "off"]
_NOT_FINITE = "the translation is not finite: the networks' weights are damaged, or too large"
ImageLike = TypeVar("ImageLike", "Tensor", "np.ndarray", "Image")


class Translator:
    """Trained generators of two domains, ready to translate; `fastunit.load` makes one.

    Args:
        networks: the generators, for instance a trained `UNIT`, or those of an exported file. They
            are moved to the device, in channels_last memory format, and put into evaluation mode.
        config: the configuration of their training. Only the ranges of its domains (`data.range_a`,
            `data.range_b`, `data.value_range`) are used: how 16-bit Pillow images are read.
        device: "cpu", "cuda", "cuda:N" or a torch.device; None is the first GPU, or the CPU if
            there is none.
        precision: compute dtype of convolutions and matmuls: "bf16", "tf32", "fp32", or "inherit"
            for PyTorch's own settings; None or "auto" is bf16 where the GPU supports it, else
            fp32.
        memory: bytes that translation may use on the device; of the CPU, those of the whole
            process. None: four fifths of what is free.

    Attributes:
        networks, config: as given.
        memory: what images need, and what there is.
        device: the torch.device in use.
        precision: the precision in use, with "auto" resolved.

    Raises:
        UserError: there is no such device, or it does not support the precision (ConfigError).
    """

    def __init__(
        self,
        networks: DomainPair | ExportedNetworks,
        config: Config,
        *,
        device: torch.device | str | None = None,
        precision: Precision | None = None,
        memory: int | None = None,
    ) -> None:
        self.device = devices.choose(device)
        self.precision: Precision = precisions.resolve(precision or "auto", self.device)
        self.networks = moved(networks, self.device).eval()
        self.config = config
        self.memory = Memory(self.networks, self.device, self.precision, memory)

    def translate(
        self,
        x: ImageLike,
        direction: Direction,
        *,
        style: Tensor | None = None,
        grad: bool = False,
        tile: Tile = "auto",
    ) -> ImageLike:
        """Translate one image, or a batch, to the other domain, without noise.

        Any height and width: images are extended to a size that the networks accept by
        replicating the last pixels, and the result is cropped. C is the source domain's number of
        channels, K the target domain's.

        Args:
            x: one of
                a tensor [C, H, W] or [N, C, H, W] on any device, of a floating dtype with values
                in [-1, 1], or of uint8;
                an array [H, W, C] or [N, H, W, C] of uint8, or of float32 in [-1, 1];
                a Pillow image of any mode. It is converted as `python -m fastunit.translate`
                converts a file: rotated by its EXIF orientation, alpha dropped, converted to the
                domain's channels; 16 bits and floating numbers by the domain's range if set.
            direction: "a2b" or "b2a".
            style: for MUNIT (network=munit), style codes of the target domain, from
                `random_styles` or `style_of`: one, [style_dim], for all images, or one for each,
                [N, style_dim]. None: the mean of their prior, 0.
            grad: record the graph for backward. `x` must then be a floating tensor; gradients
                reach it and the networks' parameters.
            tile: rows of an image that are worked on at a time, with the same result up to
                rounding (`fastunit.models.strips`). "auto": where the whole image would need more
                than the memory; "off": never.

        Returns:
            The translation: for a tensor [K, H, W] or [N, K, H, W] of the same dtype, range,
            device and memory format; for an array [H, W, K] or [N, H, W, K] of the same dtype; for
            a Pillow image one of mode L or RGB. uint8 values are rounded to nearest.

        Raises:
            UserError: an unknown direction, or a style for networks that have none.
            DataError: x has an unsupported type, dtype or shape, or no pixels; or the styles do
                not fit.
            CheckpointError: the translation of an array, image or uint8 tensor is not finite.
            torch.OutOfMemoryError: the GPU's memory is too small for the batch.
        """
        source, target = (each.input_dim for each in self.networks.along(direction))
        if grad and not (isinstance(x, Tensor) and x.is_floating_point()):
            raise DataError(f"grad=True needs a tensor of a floating dtype, not {_kind(x)}")
        if _is_image(x):
            return self._image(x, direction, style, source, target, tile)
        batch = _batch(x, source)
        y = self._run(batch, direction, style, grad, tile)
        if isinstance(x, Tensor):
            y = y.to(x.device, x.dtype).contiguous(memory_format=_memory_format(batch))
        else:
            y = y.to(batch.dtype).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return cast(ImageLike, y if cast(Any, x).ndim == batch.dim() else y[0])

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        """Return style codes of either domain from their prior N(0, 1), [count, style_dim].

        A seed's first codes are the same for any count and on any device.

        Raises:
            UserError: the networks have no styles.
        """
        return self._styled().random_styles(count, seed)

    def style_of(self, x: Tensor | np.ndarray | Image, domain: str) -> Tensor:
        """Return the style codes of images, [N, style_dim]; N is 1 for a single image.

        Args:
            x: images of the domain, as in `translate`, of at least 16 pixels a side.
            domain: "a" or "b". Translations to that domain take the codes.

        Raises:
            UserError: the networks have no styles, or an unknown domain.
            DataError: x has an unsupported type, dtype or shape, or is too small.
        """
        pair = self._styled()
        if domain not in ("a", "b"):
            raise UserError(f"domain={domain!r} must be one of a, b")
        generator = pair.gen_a if domain == "a" else pair.gen_b
        batch = _batch(self._pixels(x, domain) if _is_image(x) else x, generator.input_dim)
        with torch.no_grad(), self._computing():
            try:
                return generator.style(self._scaled(batch)).flatten(1).to(self._dtype)
            except ValueError as error:
                raise DataError(str(error)) from error

    def _styled(self) -> StyledPair:
        if isinstance(self.networks, StyledPair):
            return self.networks
        raise UserError("these networks have no styles; styles are those of MUNIT (network=munit)")

    def _image(
        self,
        x: Any,
        direction: Direction,
        style: Tensor | None,
        source: int,
        target: int,
        tile: Tile,
    ) -> Any:
        from fastunit.data import image_io  # needs Pillow, which tensors and arrays do not

        if not {source, target} <= {1, 3}:
            raise DataError(
                f"the networks translate {source} channels to {target}, but Pillow images are "
                "gray (1) or RGB (3); give a tensor or an array"
            )
        y = self.translate(self._pixels(x, direction[0]), direction, style=style, tile=tile)
        return image_io.to_image(eight_bits(y))

    def _pixels(self, x: Any, domain: str) -> np.ndarray:
        from fastunit.data import exact, image_io

        return exact.from_image(x, image_io.reading_of(self.config, domain))

    def _run(
        self, x: Tensor, direction: Direction, style: Tensor | None, grad: bool, tile: Tile
    ) -> Tensor:
        """Translate [N, C, H, W]; the result is uint8 for uint8, else of the compute dtype."""
        options = {} if style is None else {"style": self._style(style, len(x))}
        with torch.set_grad_enabled(grad), self._computing():
            if not grad and len(x) and self._in_strips(direction, x.shape[2], x.shape[3], tile):
                return torch.cat([self._by_strips(one, direction, tile) for one in x.split(1)])
            return _leveled(self.networks.translate(self._scaled(x), direction, **options), x.dtype)

    def _style(self, style: Tensor, count: int) -> Tensor:
        """Return style codes as the generators take them, checked."""
        size = self._styled().gen_a.style_dim
        codes = style[None] if style.dim() == 1 else style
        if codes.dim() != 2 or codes.shape[1] != size or len(codes) not in (1, count):
            raise DataError(
                f"a style of shape {tuple(style.shape)} does not fit; give [{size}] or "
                f"[{count}, {size}]"
            )
        return codes.to(self.device, self._dtype)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Evaluate the networks on the device and in the precision inside the block."""
        with (
            evaluating(self.networks),
            devices.current(self.device),
            precisions.autocast(self.precision, self.device),
        ):
            yield

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.networks.parameters()).dtype

    def _scaled(self, x: Tensor) -> Tensor:
        """Return images of uint8 or in [-1, 1] as the networks take them."""
        images = x.to(self.device).to(self._dtype).contiguous(memory_format=torch.channels_last)
        return images / 127.5 - 1 if x.dtype == torch.uint8 else images

    def _in_strips(self, direction: Direction, height: int, width: int, tile: Tile) -> bool:
        if tile == "off":
            return False
        if tile == "auto":
            return self.memory.images(direction, height, width) == 0
        if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
            raise UserError(f"tile={tile!r} must be auto, off or a number of rows")
        if self.memory.strips(direction) is None:
            raise UserError(
                f"tile={tile}: exported networks, MUNIT's, and those with batch norm, PReLU or "
                "replaced modules, translate whole images only"
            )
        return height > tile

    def _by_strips(self, x: Tensor, direction: Direction, tile: Tile) -> Tensor:
        """Translate [1, C, H, W]; the result is on x's device."""
        strips, (height, width) = self.memory.strips(direction), x.shape[2:]
        assert strips is not None
        y: list[Tensor] = []

        def write(start: int, rows: Tensor) -> None:
            rows = _leveled(rows, x.dtype)
            if not y:
                shape = 1, rows.shape[1], height, width
                y.append(torch.empty(shape, dtype=rows.dtype, device=x.device))
                y[0] = y[0].contiguous(memory_format=torch.channels_last)
            y[0][:, :, start : start + rows.shape[2]] = rows

        strips.translate(
            lambda start, stop: self._scaled(x[:, :, start:stop]),
            (height, width),
            write,
            rows=None if tile == "auto" else int(tile),
            values=self.memory.strip_values(direction, height, width),
            files=self.memory.keeps_in_files(direction, height, width),
            device=self.device,
        )
        return y[0]


def eight_bits(y: np.ndarray) -> np.ndarray:
    """Return images of uint8, or float32 in [-1, 1], as uint8.

    Raises:
        CheckpointError: they are not finite.
    """
    return y if y.dtype == np.uint8 else _leveled(torch.tensor(y), torch.uint8).numpy()


def finite(y: np.ndarray) -> np.ndarray:
    """Return images as they are; raises CheckpointError if they are not finite."""
    if not np.isfinite(y).all():
        raise CheckpointError(_NOT_FINITE)
    return y


def _leveled(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images in [-1, 1], or rounded to uint8 if that is `dtype`.

    Raises:
        CheckpointError: they are to be rounded and not finite.
    """
    if dtype != torch.uint8:
        return y
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    if not y.isfinite().all():
        raise CheckpointError(_NOT_FINITE)
    return ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _batch(x: object, channels: int) -> Tensor:
    """Return a tensor's or array's images as [N, C, H, W], unconverted."""
    if isinstance(x, Tensor):
        if not (x.is_floating_point() or x.dtype == torch.uint8):
            raise DataError(f"a tensor must be floating, in [-1, 1], or uint8, not {x.dtype}")
        _check_shape(x, "CHW", channels)
        return x if x.dim() == 4 else x[None]
    if not isinstance(x, np.ndarray):
        raise DataError(
            f"cannot translate {_kind(x)}; give a tensor, a NumPy array or a Pillow image"
        )
    if x.dtype not in (np.uint8, np.float32):
        raise DataError(f"an array must be uint8, or float32 in [-1, 1], not {x.dtype}")
    _check_shape(x, "HWC", channels)
    # A copy: PyTorch accepts no negative strides, and warns of read-only memory.
    batch = torch.from_numpy(np.array(x if x.ndim == 4 else x[None], order="C"))
    return batch.permute(0, 3, 1, 2)  # channels_last; nothing is copied


def _check_shape(x: Tensor | np.ndarray, layout: str, channels: int) -> None:
    """Raise DataError unless x is one image or a batch of `layout` with these channels."""
    shape = tuple(x.shape)
    if len(shape) not in (3, 4) or shape[-3:][layout.index("C")] != channels:
        wanted = ", ".join(layout).replace("C", str(channels))
        raise DataError(
            f"{_kind(x)} of shape {shape} does not fit; this domain takes [{wanted}] or "
            f"[N, {wanted}]"
        )
    if 0 in shape[-3:]:
        raise DataError(f"{_kind(x)} of shape {shape} has no pixels")


def _memory_format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _is_image(x: object) -> bool:
    module: Any = sys.modules.get("PIL.Image")  # if it is not imported, x is no Pillow image
    return module is not None and isinstance(x, module.Image)


def _kind(x: object) -> str:
    names = {Tensor: "a tensor", np.ndarray: "an array"}
    return names.get(type(x), f"an object of type {type(x).__name__}")


def of_memory(error: Exception) -> bool:
    """Return whether an allocator has failed; that of the CPU raises a plain RuntimeError."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
