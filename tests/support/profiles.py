"""ICC profiles of known colours."""

from __future__ import annotations

import struct

import numpy as np

# Columns: red, green and blue of Display P3 in XYZ of the D50 white.
P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
_SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
_WHITE = (0.9642, 1.0, 0.8249)


def wide(gamma: float = 1.8) -> bytes:
    """Return a profile of RGB colours with the primaries of P3 and that exponent."""
    curves = {name: _curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    columns = zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3.T, strict=True)
    return _profile(b"RGB ", {name: _xyz(column) for name, column in columns} | curves)


def gray(gamma: float = 1.8) -> bytes:
    """Return a profile of gray with that exponent."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def wide_to_srgb(rgb: np.ndarray, gamma: float = 1.8) -> np.ndarray:
    """Return uint8 [..., 3] of the profile `wide` as sRGB, unrounded 0..255."""
    linear = (rgb / 255) ** gamma @ (np.linalg.inv(_SRGB) @ P3).T
    return srgb_levels(linear)


def srgb_levels(linear: np.ndarray) -> np.ndarray:
    """Return linear light as levels 0..255 of sRGB, clipped."""
    x = np.clip(linear, 0, 1)
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"test colours\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(_WHITE),
    } | tags
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sII4s",
        at + len(body),
        b"none",
        0x02400000,
        b"mntr",
        space,
        b"XYZ ",
        struct.pack(">6H", 2020, 1, 1, 0, 0, 0),
        b"acsp",
        bytes(4),
        0,
        0,
        bytes(4),
    )
    header += bytes(12) + b"".join(_fixed(each) for each in _WHITE)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: object) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_fixed(each) for each in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
