"""The kind of image that a file's header declares; unsupported kinds are rejected here.

Pillow and DALI both silently misread some TIFF variants, some of them in the same way, so that
comparing their results would not find it. Such files are rejected by their header.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from fastunit.common.errors import DataError

_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # samples of a TIFF's photometric interpretations
_WHITE_IS_ZERO, _RGB = 0, 2
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_SAMPLES = {(_FLOAT, 32), *((_UNSIGNED, bits) for bits in (1, 2, 4, 8, 16))}
_MOST_SCANS = 200  # of a JPEG: with 20,000 one of 1 MB takes 200 s
_AGAIN = "save it with 8 or 16 bits, unsigned, gray or RGB"


@dataclass(frozen=True)
class Kind:
    """What a header says of the samples.

    `deep`: 16 bits each; `lossy`: lossy compression; `planar`: colours in separate planes.
    """

    deep: bool = False
    lossy: bool = False
    planar: bool = False


def kind_of(data: bytes) -> Kind:
    """Return the kind of a file's image, from its first header.

    Raises:
        DataError: a TIFF variant that the decoders misread, or a file that would occupy them for
            long; with the reason.
    """
    if data[:8] == _PNG:
        return Kind(deep=data[24:25] == b"\x10")
    if is_tiff(data):
        return _tiff_kind(data)
    jpeg = data[:2] == b"\xff\xd8"
    if jpeg and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise DataError(f"JPEG of {scans:,} scans; save it with fewer, the usual ones have ten")
    return Kind(lossy=jpeg or is_webp(data))


def is_webp(data: bytes) -> bool:
    """Return whether a file begins as a WebP."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def is_tiff(data: bytes) -> bool:
    """Return whether a file begins as a TIFF."""
    return data[:4] in _TIFF


def floating(data: bytes) -> bool:
    """Return whether a file is a TIFF of floating-point numbers."""
    return is_tiff(data) and _tiff_header(data)(339, _UNSIGNED)[0] == _FLOAT


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height of a WebP's header; None if it is damaged.

    Pillow allocates all pixels when it opens a WebP, so its size must be known before.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[at : at + 2], "little") for at in (6, 8))
        return width & 0x3FFF, height & 0x3FFF
    return None


def even_chunks(data: bytes) -> bytes:
    """Return a WebP whose chunks have even lengths: their padding bytes are counted in.

    DALI (2.3) does not skip the padding of odd chunks and misses what follows, such as EXIF data.
    Decoders ignore a zero byte at a chunk's end.
    """
    out, at = bytearray(data), 12
    while at + 8 <= len(out):
        length = int.from_bytes(out[at + 4 : at + 8], "little")
        if length % 2 and at + 8 + length < len(out):
            length += 1
            out[at + 4 : at + 8] = length.to_bytes(4, "little")
        at += 8 + length
    return bytes(out)


def _tiff_kind(data: bytes) -> Kind:
    header = _tiff_header(data)
    bits, formats = header(258, 1), header(339, _UNSIGNED)
    photometric, samples, planes = header(262, 0)[0], header(277, 1)[0], header(284, 1)[0]
    deep = bits[0] == 16
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise DataError(f"TIFF whose samples differ in depth or format; {_AGAIN}")
    if formats[0] == _SIGNED or (formats[0] == _UNSIGNED and bits[0] == 32):
        raise DataError(f"TIFF of 32-bit or signed integers; {_AGAIN}")
    if (formats[0], bits[0]) not in _SAMPLES:
        what = "floating-point numbers" if formats[0] == _FLOAT else "samples"
        raise DataError(f"TIFF of {bits[0]}-bit {what}; {_AGAIN}")
    if photometric not in _COLOURS:
        raise DataError(f"TIFF of photometric interpretation {photometric}; {_AGAIN}")
    colours = _COLOURS[photometric]
    if samples < colours or (samples > colours and photometric != _RGB):
        raise DataError(f"TIFF of {samples} samples per pixel, where {colours} are read; {_AGAIN}")
    if samples > 1 and bits[0] == 32:
        raise DataError(f"TIFF of 32-bit colours; {_AGAIN}, or state the range of its values")
    if samples > colours and header(338, 0)[0] == 1:
        raise DataError("TIFF whose colours are multiplied by alpha; save it without alpha")
    if bits[0] > 8 and photometric == _WHITE_IS_ZERO:
        raise DataError(f"TIFF of {bits[0]} bits whose zero is white; save it with zero for black")
    if bits[0] > 8 and planes != 1:
        raise DataError(
            f"TIFF of {bits[0]} bits in separate planes; save it with its colours interleaved"
        )
    return Kind(deep=deep, lossy=header(259, 1)[0] in (6, 7), planar=samples > 1 and planes != 1)


def _tiff_header(data: bytes) -> Any:
    """Return a function of (tag, default) that returns a tag's values for a TIFF's first image."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        tags = ImageFileDirectory_v2(data[: 16 if b"+" in data[:4] else 8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
    except Exception as error:  # a dozen exception types on damaged files
        raise DataError(f"damaged or truncated: {error}") from error
    twice = _duplicates(data)
    if twice:
        raise DataError(f"damaged: TIFF tags {', '.join(map(str, twice))} stand twice")

    def numbers(tag: int, default: int) -> tuple[int, ...]:
        value = tags.get(tag, default)
        value = value if isinstance(value, tuple) else (value,)
        if not value or not all(isinstance(number, int) for number in value):
            raise DataError(f"damaged or truncated: TIFF tag {tag} holds no whole numbers")
        return value

    return numbers


def _duplicates(data: bytes) -> list[int]:
    """Return the tags that a TIFF's first directory has twice: decoders may take either one.

    A second ImageWidth made DALI's fallback decoder write past its buffer.
    """
    order = "little" if data[:2] == b"II" else "big"
    big = b"+" in data[:4]
    offset, width, entry = (8, 8, 20) if big else (4, 4, 12)
    start = int.from_bytes(data[offset : offset + width], order)
    counter = 8 if big else 2
    count = int.from_bytes(data[start : start + counter], order)
    seen: dict[int, int] = {}
    for index in range(min(count, 65536)):
        at = start + counter + index * entry
        tag = int.from_bytes(data[at : at + 2], order)
        seen[tag] = seen.get(tag, 0) + 1
    return sorted(tag for tag, times in seen.items() if times > 1)
