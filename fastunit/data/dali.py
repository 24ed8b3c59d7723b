"""NVIDIA DALI: whether it is used, and its decoder.

Without it, or with ``data.loader=pillow``, images are decoded and read by Pillow.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from fastunit.common import extras
from fastunit.common.choices import ImageLoader
from fastunit.common.errors import DataError

_logger = logging.getLogger(__name__)


def installed() -> bool:
    """Return whether DALI can be imported."""
    return not _missing()


def used(loader: ImageLoader) -> bool:
    """Return whether DALI decodes, if ``data.loader`` is `loader`."""
    return loader != "pillow" and installed()


def version() -> str:
    """Return DALI's version; "none" if it is not installed."""
    if not installed():
        return "none"
    from nvidia import dali

    return dali.__version__


def require(loader: ImageLoader) -> None:
    """Raise DataError, with the remedy, if `loader` is "dali" and DALI is not installed."""
    if loader == "dali" and (reason := _missing()):
        raise DataError(
            f"data.loader=dali needs NVIDIA DALI, which cannot be imported ({reason}); install it "
            f"with: {extras.install('train')}, or read images by Pillow with "
            "--set data.loader=pillow"
        )


def announce(loader: ImageLoader) -> None:
    """Warn in one line if images are read by Pillow because DALI is missing."""
    if loader == "auto" and (reason := _missing()):
        _logger.warning(
            "images are read by Pillow, as NVIDIA DALI cannot be imported (%s): the same crops and "
            "flips, values equal up to one gray level; data.loader=pillow does so in silence, "
            "data.loader=dali stops instead",
            reason,
        )


def decode(data: bytes, channels: int, name: str, *, deep: bool = False) -> np.ndarray:
    """Return uint8 (uint16 where `deep`) [H, W, channels] as DALI decodes a file's bytes.

    Raises:
        DataError: it cannot; the message says what is in the file by `name`.
    """
    import nvidia.dali.experimental.dynamic as dynamic
    from nvidia.dali import types

    encoded = np.frombuffer(data, np.uint8)
    try:
        tensor = dynamic.decoders.image(encoded, device="cpu", **options(channels, deep, types))
        return np.asarray(tensor.cpu())
    except MemoryError as error:
        raise DataError("too little memory to decode it") from error
    except RuntimeError as error:
        raise DataError(
            f"the loader (DALI) cannot decode {name}; save it as PNG or JPEG"
        ) from error


def options(channels: int, deep: bool, types: Any) -> dict[str, Any]:
    """Return the arguments of DALI's decoder, the same for training and for the check."""
    return {
        "output_type": types.RGB if channels == 3 else types.GRAY,
        "dtype": types.UINT16 if deep else types.UINT8,
        "jpeg_fancy_upsampling": True,  # as Pillow; on CPUs DALI always does
    }


def _missing() -> str:
    """Return why DALI cannot be imported; empty if it can."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""
