"""A file is one picture to the check, to training and to translation, or to none of them."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from fastunit.common.errors import DataError
from fastunit.data import image_io
from fastunit.data.image_io import Reading
from fastunit.data.validation import SizeRule, problem

pytest.importorskip("nvidia.dali", reason="training decodes with NVIDIA DALI")
HEIGHT, WIDTH = 20, 28
Case = tuple[bytes, np.ndarray | str]  # a file, and its picture or why it is refused


def waves() -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [127.5 + 120 * np.sin(x / 5 + k) * np.cos(y / 4 - k) for k in range(3)]
    return np.stack(planes, -1).round().astype(np.uint8)


RGB = waves()
GRAY = RGB[..., 0]
ALPHA = np.broadcast_to(np.uint8(np.arange(WIDTH) * 9), GRAY.shape)
DEEP, DEEP_GRAY = RGB.astype(np.uint16) * 257, GRAY.astype(np.uint16) * 257
DEEP_ALPHA = ALPHA.astype(np.uint16) * 257


def pillow(values: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    image, stream = Image.fromarray(values), io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def png(values: np.ndarray, colour: int, depth: int) -> bytes:
    """Return a PNG of unfiltered rows, samples of `depth` bits; colour is PNG's type."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = values.reshape(HEIGHT, -1)
    data = b"".join(b"\0" + row for row in packed(rows, depth, ">"))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", PALETTE.tobytes()) if colour == 3 else b""
    chunks = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def packed(rows: np.ndarray, depth: int, order: str) -> Iterator[bytes]:
    """Yield each row's samples of `depth` bits, each row from a byte's beginning."""
    for row in rows:
        if depth % 8 == 0:
            yield row.astype(row.dtype.newbyteorder(order)).tobytes()
        else:
            bits = "".join(f"{int(value):0{depth}b}" for value in row)
            bits += "0" * (-len(bits) % 8)
            yield bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def tiff(values: np.ndarray, photometric: int, depth: int = 8, **tags: object) -> bytes:
    """Return an uncompressed TIFF of [H, W] or [H, W, N], one strip (per plane).

    `tags`: order "<" or ">", planar 1 or 2, tile (a side), sample_format, extra, orientation,
    colormap, predictor (with deflate).
    """
    order, planar = tags.get("order", "<"), tags.get("planar", 1)
    values = values.reshape(*values.shape[:2], -1)
    samples = values.shape[2]
    parts = [values[..., k : k + 1] for k in range(samples)] if planar == 2 else [values]
    entries = {256: (4, [values.shape[1]]), 257: (4, [values.shape[0]]), 277: (3, [samples])}
    entries |= {258: (3, [depth] * samples), 262: (3, [photometric]), 284: (3, [planar])}
    entries |= {339: (3, [tags.get("sample_format", 1)] * samples)}
    entries |= {274: (3, [tags.get("orientation", 1)]), 259: (3, [1])}
    for tag, name in ((338, "extra"), (320, "colormap")):
        if name in tags:
            entries[tag] = (3, list(tags[name]))
    offsets_tag, counts_tag = 273, 279
    if side := tags.get("tile"):
        parts = [tile for part in parts for tile in tiles(part, side)]
        entries |= {322: (4, [side]), 323: (4, [side])}
        offsets_tag, counts_tag = 324, 325
    else:
        entries[278] = (4, [values.shape[0]])
    if tags.get("predictor"):
        entries |= {317: (3, [2]), 259: (3, [8])}
        parts = [np.diff(part, axis=1, prepend=part.dtype.type(0)) for part in parts]
    rows = (part.reshape(part.shape[0], -1) for part in parts)
    strips = [b"".join(packed(row, depth, order)) for row in rows]
    strips = [zlib.compress(strip) for strip in strips] if tags.get("predictor") else strips
    offsets = np.cumsum([8, *(len(strip) for strip in strips)])
    entries[offsets_tag] = (4, offsets[:-1].tolist())
    entries[counts_tag] = (4, [len(strip) for strip in strips])
    return tiff_file(b"".join(strips), entries, order)


def tiles(plane: np.ndarray, side: int) -> Iterator[np.ndarray]:
    height, width = (-plane.shape[0] % side, -plane.shape[1] % side)
    plane = np.pad(plane, ((0, height), (0, width), (0, 0)))
    for y in range(0, plane.shape[0], side):
        for x in range(0, plane.shape[1], side):
            yield plane[y : y + side, x : x + side]


def tiff_file(data: bytes, entries: dict[int, tuple[int, list[int]]], order: str) -> bytes:
    data += b"\0" * (len(data) % 2)
    first = 8 + len(data)
    after = first + 2 + 12 * len(entries) + 4
    fields, long = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(content) > 4:
            where = struct.pack(f"{order}I", after + len(long))
            long += content + b"\0" * (len(content) % 2)
            content = where
        fields += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, first)
    count = struct.pack(f"{order}H", len(entries))
    return head + data + count + fields + struct.pack(f"{order}I", 0) + long


PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
INDICES = np.uint8(np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) % 16)
COLORMAP = (PALETTE.T.astype(int) * 257).ravel().tolist()
BACK = [None, None, 0, 3, 1, 5, 2, 6, 4]  # Pillow's transposition that each orientation undoes


def oriented(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return the stored pixels that EXIF's `orientation` turns into `values`."""
    if orientation == 1:
        return values
    return np.asarray(Image.fromarray(values).transpose(Image.Transpose(BACK[orientation])))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def pngs() -> Iterator[tuple[str, bytes, np.ndarray]]:
    for depth in (1, 2, 4, 8):
        top = 2**depth - 1
        values = GRAY >> (8 - depth)
        yield f"gray{depth}", png(values, 0, depth), np.uint8(values.astype(int) * 255 // top)
        indices = np.minimum(INDICES, top)
        yield f"palette{depth}", png(indices, 3, depth), PALETTE[indices]
    yield "rgb8", png(RGB, 2, 8), RGB
    yield "la8", png(np.dstack([GRAY, ALPHA]), 4, 8), GRAY
    yield "rgba8", png(np.dstack([RGB, ALPHA]), 6, 8), RGB

    yield "gray16", png(DEEP_GRAY, 0, 16), GRAY
    yield "rgb16", png(DEEP, 2, 16), RGB
    yield "la16", png(np.dstack([DEEP_GRAY, DEEP_ALPHA]), 4, 16), GRAY
    yield "rgba16", png(np.dstack([DEEP, DEEP_ALPHA]), 6, 16), RGB


def tiffs() -> Iterator[tuple[str, bytes, np.ndarray | str]]:
    for order in "<>":
        for name, layout in {
            "strip": {},
            "tile": {"tile": 16},
            "predictor": {"predictor": True},
            "planar": {"planar": 2},
        }.items():
            layout = layout | {"order": order}
            planes = "in separate planes" if name == "planar" else None
            label = f"{name}{order}"
            yield f"gray8 {label}", tiff(GRAY, 1, **layout), GRAY
            # DALI has no way to these; the others it inverts as it should.
            refused = {"tile": "(DALI) cannot decode", "planar": "(DALI) misreads"}.get(name)
            yield f"white8 {label}", tiff(GRAY, 0, **layout), refused or 255 - GRAY
            yield f"rgb8 {label}", tiff(RGB, 2, **layout), RGB
            yield f"gray16 {label}", tiff(DEEP_GRAY, 1, 16, **layout), planes or GRAY
            yield f"white16 {label}", tiff(DEEP_GRAY, 0, 16, **layout), "whose zero is white"
            yield f"rgb16 {label}", tiff(DEEP, 2, 16, **layout), planes or RGB
        for depth in (10, 12, 14):
            values = DEEP_GRAY >> (16 - depth)
            yield f"gray{depth}{order}", tiff(values, 1, depth, order=order), f"{depth}-bit samples"
        float_ = {"sample_format": 3, "order": order}
        unit = np.float32(GRAY / 255)
        yield f"float{order}", tiff(unit, 1, 32, **float_), GRAY
        yield f"float white{order}", tiff(unit, 0, 32, **float_), "whose zero is white"
        yield f"half{order}", tiff(unit.astype(np.float16), 1, 16, **float_), "16-bit floating"
        yield f"double{order}", tiff(unit.astype(float), 1, 64, **float_), "64-bit floating"
        yield f"float rgb{order}", tiff(np.float32(RGB / 255), 2, 32, **float_), "32-bit colours"
        signed = {"sample_format": 2, "order": order}
        yield f"int8{order}", tiff(GRAY, 1, 8, **signed), "signed integers"
        yield f"int16{order}", tiff(DEEP_GRAY, 1, 16, **signed), "signed integers"
        yield f"int32{order}", tiff(GRAY.astype(np.uint32), 1, 32, order=order), "signed integers"
    yield "palette8", tiff(INDICES, 3, colormap=COLORMAP), PALETTE[INDICES]
    cmyk = np.asarray(Image.fromarray(RGB).convert("CMYK"))
    yield "cmyk8", tiff(cmyk, 5), RGB
    yield "lab", tiff(RGB, 8), "photometric interpretation 8"
    yield "alpha", tiff(np.dstack([RGB, ALPHA]), 2, extra=[2]), RGB
    yield "alpha16", tiff(np.dstack([DEEP, DEEP_ALPHA]), 2, 16, extra=[2]), RGB
    yield "infrared", tiff(np.dstack([RGB, GRAY]), 2, extra=[0]), RGB
    yield "multiplied", tiff(np.dstack([RGB, ALPHA]), 2, extra=[1]), "multiplied by alpha"
    yield "gray alpha", tiff(np.dstack([GRAY, ALPHA]), 1, extra=[2]), "2 samples per pixel"
    yield "bands", tiff(np.dstack([RGB, RGB]), 1, extra=[0] * 5), "6 samples per pixel"
    for orientation in range(2, 9):
        for name, values, photometric in (("gray", GRAY, 1), ("rgb", RGB, 2)):
            data = tiff(oriented(values, orientation), photometric, orientation=orientation)
            yield f"{name} turned {orientation}", data, values


def others() -> Iterator[tuple[str, bytes, np.ndarray]]:
    for name, options in {
        "jpeg444": {"subsampling": 0},
        "jpeg420": {"subsampling": 2},
        "progressive": {"progressive": True},
        "jpeg rgb": {"keep_rgb": True},
    }.items():
        yield name, pillow(RGB, "JPEG", quality=97, **options), RGB
    yield "jpeg gray", pillow(GRAY, "JPEG", quality=97), GRAY
    yield "jpeg cmyk", pillow(RGB, "JPEG", "CMYK", quality=97), RGB
    yield "jpeg in tiff", pillow(RGB, "TIFF", compression="jpeg", quality=97), RGB
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"{compression} deep", pillow(DEEP_GRAY, "TIFF", compression=compression), GRAY
        yield compression, pillow(RGB, "TIFF", compression=compression), RGB
    yield "big tiff", pillow(RGB, "TIFF", big_tiff=True), RGB
    yield "bmp", pillow(RGB, "BMP"), RGB
    yield "bmp gray", pillow(GRAY, "BMP"), GRAY
    yield "bmp alpha", pillow(np.dstack([RGB, ALPHA]), "BMP"), RGB
    yield "bmp 1", pillow(GRAY, "BMP", "1"), np.asarray(Image.fromarray(GRAY).convert("1")) * 255
    yield "webp", pillow(RGB, "WEBP", lossless=True), RGB
    yield "webp lossy", pillow(RGB, "WEBP", quality=100), RGB
    yield (
        "webp alpha",
        pillow(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
        RGB,
    )
    for orientation in range(2, 9):
        stored = oriented(RGB, orientation)
        for kind in ("JPEG", "PNG"):
            options = {"quality": 97, "subsampling": 0} if kind == "JPEG" else {}
            data = pillow(stored, kind, exif=exif(orientation), **options)
            yield f"{kind} turned {orientation}", data, RGB


CASES: dict[str, Case] = {
    f"{kind} {name}": (data, wanted)
    for kind, make in (("png", pngs), ("tiff", tiffs), ("other", others))
    for name, data, wanted in make()
}


def refusal(call: Callable[[], object]) -> str | None:
    try:
        call()
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_check_training_and_translation_see_one_picture(tmp_path, as_trained, name, channels):
    data, wanted = CASES[name]
    file = tmp_path / "x.tif"
    file.write_bytes(data)
    reason = problem(file, SizeRule(None, None, Reading(channels)))
    assert refusal(lambda: image_io.read(file, channels)) == reason
    if isinstance(wanted, str):
        assert reason is not None and wanted in reason
        return
    assert reason is None
    translated = image_io.read(file, channels)
    assert np.array_equal(translated, as_trained(file, channels))
    rgb = np.broadcast_to(wanted.reshape(HEIGHT, WIDTH, -1), (HEIGHT, WIDTH, 3))
    expected = rgb if channels == 3 else (rgb @ [0.299, 0.587, 0.114])[..., None]
    difference = np.abs(translated - expected.astype(float))
    lossy = any(word in name.lower() for word in ("jpeg", "progressive", "lossy"))
    if lossy:
        assert difference.mean() < 4
    else:
        assert difference.max() < 1.51  # the rounding of a luminance, and of 16 bits


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in CASES if not isinstance(CASES[name][1], str)])
def test_without_dali_the_picture_is_the_same(tmp_path, monkeypatch, name, channels):
    """Pillow alone, which then translates, is as near as rounding."""
    data = CASES[name][0]
    seen = image_io.decode(data, Reading(channels))
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert np.abs(image_io.decode(data, Reading(channels)).astype(int) - seen).max() <= 1
