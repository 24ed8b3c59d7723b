"""Hostile image files: ``python -m tests.hostile.images [--count 20000] [--seed 0]``.

Generates files of all formats and damages them: cut at every KiB, flipped bits, headers that
contradict the content, bombs, special files, hostile names. Each is measured as before training.
Counted are tracebacks (other exceptions than DataError), hangs (more than the limit of seconds and
a margin), processes above MEMORY, and wrong pixels: an undamaged file that is accepted must have
the pixels that were written.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from fastunit.common.errors import DataError
from fastunit.data import decoding
from fastunit.data.image_io import Limits, Reading

MEMORY = 1.5e9  # bytes of a process's largest resident set
SECONDS = 10.0
MARGIN = 5.0
LOSSY = 6.0  # largest mean difference of JPEG and lossy WebP
Made = tuple[bytes, "np.ndarray | None", bool]  # content, pixels if undamaged, whether lossy


def picture(rng: random.Random) -> np.ndarray:
    """Return a smooth colour image of a random size, uint8 [H, W, 3]."""
    height, width = rng.randrange(8, 90), rng.randrange(8, 90)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / 17 + k + rng.random()) * np.cos(y / 23 - k) for k in range(3)]
    return np.stack(waves, -1).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, rng: random.Random) -> Made:
    """Return a file of one of the formats and modes."""
    gray = np.repeat(pixels[..., :1], 3, -1)
    choices: list[tuple[str, str, dict, np.ndarray, bool]] = [
        ("PNG", "RGB", {}, pixels, False),
        ("PNG", "L", {}, gray, False),
        ("PNG", "P", {}, pixels, True),
        ("PNG", "RGBA", {}, pixels, False),
        ("BMP", "RGB", {}, pixels, False),
        ("BMP", "L", {}, gray, False),
        ("TIFF", "RGB", {}, pixels, False),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}, pixels, False),
        ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}, pixels, False),
        ("TIFF", "RGB", {"compression": "jpeg", "quality": 95}, pixels, True),
        ("TIFF", "CMYK", {}, pixels, True),
        ("TIFF", "LAB", {}, pixels, True),
        ("TIFF", "L", {}, gray, False),
        ("JPEG", "RGB", {"quality": 95, "subsampling": 0}, pixels, True),
        ("JPEG", "RGB", {"quality": 90, "progressive": True}, pixels, True),
        ("JPEG", "L", {"quality": 95}, gray, True),
        ("JPEG", "CMYK", {"quality": 95}, pixels, True),
        ("WEBP", "RGB", {"lossless": True}, pixels, False),
        ("WEBP", "RGB", {"quality": 95}, pixels, True),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}, pixels, False),
        ("GIF", "P", {}, pixels, True),
    ]
    kind, mode, options, expected, lossy = rng.choice(choices)
    source = Image.fromarray(gray[..., 0] if mode == "L" else pixels)
    stream = io.BytesIO()
    if mode == "P":
        image = source.quantize(64)
        expected = np.asarray(image.convert("RGB"))
        lossy = kind == "GIF"
    elif mode == "LAB":
        image = Image.merge("LAB", source.split())
    else:
        image = source if mode == source.mode else source.convert(mode)
    image.save(stream, kind, **options)
    return stream.getvalue(), expected, lossy


def large(rng: random.Random) -> bytes:
    """Return a file of some 100 KiB, to be cut."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (180, 200, 3), np.uint8)
    stream = io.BytesIO()
    kind = rng.choice(("PNG", "BMP", "TIFF", "JPEG", "WEBP"))
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def cut(rng: random.Random) -> Made:
    data = large(rng)
    return data[: 1024 * rng.randrange(0, len(data) // 1024 + 1)], None, False


def flipped(rng: random.Random) -> Made:
    data = bytearray(encoded(picture(rng), rng)[0])
    for _ in range(rng.choice((1, 1, 2, 8, 60))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data), None, False


def header_flipped(rng: random.Random) -> Made:
    data = bytearray(encoded(picture(rng), rng)[0])
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    return bytes(data), None, False


def spliced(rng: random.Random) -> Made:
    one, other = encoded(picture(rng), rng)[0], encoded(picture(rng), rng)[0]
    at = rng.randrange(min(len(one), len(other)))
    return one[:at] + other[at:], None, False


def contradicting(rng: random.Random) -> Made:
    """Return a TIFF with tags that contradict each other, or stand twice."""
    width, height = rng.randrange(1, 90), rng.randrange(1, 90)
    photometric = rng.choice((0, 1, 2, 3, 5, 6, 8, 9, 32844))
    samples = rng.choice((1, 1, 3, 4))
    tags = {
        256: width,
        257: height,
        258: 8,
        259: rng.choice((1, 1, 2, 5, 7, 8, 32773)),
        262: photometric,
    }
    tags |= {
        273: 8,
        277: samples,
        278: height,
        279: width * height * samples,
        284: rng.choice((1, 2)),
    }
    entries = list(tags.items())
    for _ in range(rng.randrange(1, 4)):
        tag = rng.choice((256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 339))
        entries.append((tag, rng.choice((0, 1, 2, 7, 10, 16, 60, 5000, 65535, 2**31))))
    if rng.random() < 0.5:
        entries = list({tag: value for tag, value in entries}.items())
    content = bytes(rng.randrange(256) for _ in range(200)) * (width * height * samples // 200 + 1)
    start = 8 + len(content) + len(content) % 2
    body = struct.pack("<2sHI", b"II", 42, start) + content.ljust(start - 8, b"\0")
    body += struct.pack("<H", len(entries))
    for tag, value in sorted(entries):
        body += struct.pack("<HHII", tag, 4, 1, value)
    return body + bytes(4), None, False


def bomb(rng: random.Random) -> Made:
    """Return a small file that claims, or holds, very many pixels."""
    width, height = rng.choice(
        ((13000, 13000), (16383, 16383), (65535, 65535), (60000, 1100), (1, 2**26))
    )
    kind = rng.randrange(5)
    if kind == 0:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", progressive=rng.random() < 0.5)
        data = bytearray(stream.getvalue())
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
        data[at : at + 4] = struct.pack(">HH", min(height, 65535), min(width, 65535))
        return bytes(data), None, False
    if kind == 1:
        return b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + b"\xff" * rng.randrange(5, 14), None, False
    if kind == 2:
        deflater, row = zlib.compressobj(9), bytes(1 + 3 * min(width, 13000))
        rows = b"".join(deflater.compress(row) for _ in range(rng.randrange(1, 2000)))
        parts = ((b"IHDR", struct.pack(">IIBBBBB", min(width, 13000), height, 8, 2, 0, 0, 0)),)
        parts += ((b"IDAT", rows + deflater.flush()), (b"IEND", b""))
        chunks = (
            struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
            for k, b in parts
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks), None, False
    if kind == 3:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", progressive=True)
        data = stream.getvalue()
        scan = data[data.rindex(b"\xff\xda") : -2]
        return data[:-2] + scan * rng.choice((150, 5000)) + data[-2:], None, False
    header = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 100, 0, 0, 54, 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0
    )
    return header + bytes(46), None, False


def good(rng: random.Random) -> Made:
    return encoded(picture(rng), rng)


MAKERS: tuple[tuple[Callable[[random.Random], Made], int], ...] = (
    (good, 4), (cut, 3), (flipped, 5), (header_flipped, 4), (spliced, 2), (contradicting, 3),
    (bomb, 1),
)  # fmt: skip


def special(path: Path, rng: random.Random) -> None:
    """Make something at `path` that is no regular file with an image in it."""
    kind = rng.randrange(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        with open(path, "wb") as file:
            file.truncate(6 * 2**30)
    elif kind == 5:
        path.symlink_to("/proc/self/mem")
    else:
        path.touch()


def name(index: int, rng: random.Random) -> str:
    """Return a file's name, often an odd one."""
    suffix = rng.choice((".jpg", ".png", ".tif", ".webp", ".bmp", ".JPG"))
    stem = rng.choice(
        ("x", "a b", "\x1b[31m", "new\nline", "写" * 60, "n" * 230, "'\"$(id)", "-rf")
    )
    odd = os.fsdecode(b"\xe9\xff") if rng.random() < 0.2 else ""
    return f"{stem}{odd}{index}{suffix}"


def cases(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, np.ndarray | None, bool]]:
    """Make files one by one and yield (path, pixels if undamaged, whether lossy)."""
    rng = random.Random(seed)
    makers = [maker for maker, weight in MAKERS for _ in range(weight)]
    for index in range(count):
        path = folder / name(index, rng)
        if rng.random() < 0.02:
            special(path, rng)
            yield path, None, False
        else:
            data, expected, lossy = rng.choice(makers)(rng)
            path.write_bytes(data)
            yield path, expected, lossy
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            path.rmdir()


def attempt(path: Path, expected: np.ndarray | None, lossy: bool, reading: Reading) -> str:
    """Return what became of a file: "refused", "accepted", or what is wrong."""
    start = time.monotonic()
    try:
        pixels = decoding.decode(path, reading)
    except DataError as error:
        outcome = "lost a process, refused" if "ended the process" in str(error) else "refused"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]}"
    else:
        outcome = "accepted"
        if expected is not None:
            if pixels.shape != expected.shape:
                return f"wrong pixels: {pixels.shape} for {expected.shape}"
            difference = np.abs(pixels.astype(int) - expected)
            if difference.mean() > LOSSY if lossy else difference.max() > 2:
                return f"wrong pixels: off by {difference.mean():.1f} on average"
    if time.monotonic() - start > SECONDS + MARGIN:
        return "hang"
    return outcome


def largest() -> float:
    """Return the largest resident set of the processes that decode now, in bytes."""
    sizes = [0.0]
    for worker in [*decoding._idle, *decoding._busy]:
        try:
            status = Path(f"/proc/{worker._process.pid}/status").read_text()
        except OSError:
            continue
        sizes += [float(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmHWM")]
    return max(sizes)


def run(count: int, seed: int) -> tuple[Counter[str], list[str], float]:
    """Try files; return counts of what became of them, the wrong ones, and the most memory."""
    counts: Counter[str] = Counter()
    wrong, most = [], 0.0
    reading = Reading(limits=Limits(seconds=SECONDS))
    with TemporaryDirectory() as folder:
        for index, case in enumerate(cases(Path(folder), count, seed)):
            outcome = attempt(*case, reading)
            counts[outcome.partition(":")[0]] += 1
            most = max(most, largest())
            if outcome.partition(":")[0] in ("traceback", "wrong pixels", "hang"):
                wrong.append(f"{index} {case[0].name!r}: {outcome}")
    if most > MEMORY:
        wrong.append(f"{most / 1e9:.2f} GB in a process")
    return counts, wrong, most


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if nothing went wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.images")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    counts, wrong, most = run(args.count, args.seed)
    print("\n".join(wrong[:20]))
    print(", ".join(f"{name} {n}" for name, n in sorted(counts.items())), f"of {args.count};")
    print(f"at most {most / 1e9:.2f} GB in a process")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
