"""Colour profiles (ICC): pixels converted to sRGB, which training data and screens mostly are."""

from __future__ import annotations

import io

from PIL import Image, ImageCms

from fastunit.common.errors import DataError

_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}  # of modes, as a profile's header says


def applies(image: Image.Image) -> bool:
    """Return whether an image has a profile, of its own kind of colours, that is not sRGB.

    Raises:
        DataError: the profile is damaged.
    """
    data = image.info.get("icc_profile")
    if not data or data[16:20] != _SPACES.get(_plain(image.mode)):
        return False
    return "sRGB" not in ImageCms.getProfileDescription(_profile(data))


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit image in sRGB, of mode RGB; alpha is dropped. The image is not modified.

    Relative colorimetric, with black point compensation.

    Raises:
        DataError: the profile is damaged.
    """
    try:
        found = ImageCms.profileToProfile(
            image.convert(_plain(image.mode)),
            _profile(image.info["icc_profile"]),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise _damaged(error) from error
    assert found is not None
    return found


def _profile(data: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(data))
    except (OSError, ImageCms.PyCMSError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> DataError:
    return DataError(f"its ICC profile is damaged ({error}); leave it out with --profile ignore")


def _plain(mode: str) -> str:
    """Return the mode without alpha and palette."""
    return {"RGBA": "RGB", "P": "RGB", "PA": "RGB", "LA": "L"}.get(mode, mode)
