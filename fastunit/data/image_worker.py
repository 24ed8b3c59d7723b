"""The process that decodes images for `decoding`: ``python -m fastunit.data.image_worker``.

Decoders are native code, and files can be made to break it: this process can be lost. Per request,
a line of JSON on stdin, it answers with a line of JSON on stdout and, if asked for, the pixels and
what is wanted beside them.
It writes no files, dumps no core, and takes memory in proportion to the limits of the request. It
ends when stdin is closed, or after IDLE seconds without a request.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import sys
from pathlib import Path
from typing import Any

import numpy as np

IDLE = 10.0
DIGEST = 16  # bytes of a file's BLAKE2b digest
PER_PIXEL = 14  # bytes: two decoded copies and the decoders' own, with room to spare
FLOATS = 24  # bytes a pixel and channel, of more than 3: values, in double and single precision
BASE = 2**28  # bytes beside the process's own at its start, the file and the pixels


def main() -> int:
    """Answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "wb")
    # Native code prints to stdout and stderr.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    from PIL import Image

    sys.modules["torch"] = None  # type: ignore[assignment]  # DALI would import it: a second
    from fastunit.data import dali

    dali.installed()  # imported before its memory counts
    Image.MAX_IMAGE_PIXELS = None  # `Limits` decide instead
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    used = _data_bytes()
    replies.write(b"ready\n")
    replies.flush()
    os.dup2(sink, 2)
    with open(0, "rb", buffering=0) as requests:
        while select.select([requests], [], [], IDLE)[0] and (line := requests.readline()):
            answer, parts = _answer(json.loads(line), used)
            replies.write(json.dumps(answer).encode() + b"\n")
            for part in parts:
                replies.write(part)
            replies.flush()
            answer = parts = part = None  # the next file may need their memory
    return 0


def _answer(request: dict[str, Any], used: int) -> tuple[dict[str, Any], list[Any]]:
    """Decode and measure one file; the answer has "error", or what is known of the file.

    The bytes that follow it, of the lengths in "parts": pixels, alpha, profile and EXIF data.
    """
    from fastunit.common.errors import DataError
    from fastunit.data import exact, image_io, value_ranges
    from fastunit.data import picture as pictures
    from fastunit.data.image_kinds import kind_of

    limits = image_io.Limits(**request["limits"])
    more = FLOATS * request["channels"] if request["channels"] > 3 else 0
    most = used + BASE + limits.bytes + (PER_PIXEL + more) * limits.pixels
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    span = request["range"]
    reading = image_io.Reading(
        request["channels"],
        span and (span[0], span[1]),
        request["key"],
        limits,
        request["loader"],
        request["arrays"],
    )
    try:
        data = image_io.content(Path(os.fsdecode(bytes.fromhex(request["path"]))), limits)
        if request["wanted"]:
            picture = pictures.read(data, reading, pictures.Wanted(**request["wanted"]))
        else:
            picture = pictures.Picture(exact.decode(data, reading, deep=reading.arrays))
        values = None
        if not request["pixels"] and not exact.is_array(data, reading) and kind_of(data).deep:
            deep = image_io.sixteen_bits(data, reading)
            values = None if deep is None else value_ranges.used(deep)
    except DataError as error:
        return {"error": str(error)}, []
    except MemoryError:
        return {"error": "too little memory to decode it"}, []
    except Exception as error:  # decoders raise many types
        return {"error": f"cannot be decoded: {type(error).__name__}: {error}"[:500]}, []
    digest = hashlib.blake2b(data, digest_size=DIGEST).hexdigest()
    parts = _bytes(picture) if request["pixels"] else []
    lengths = [len(part) for part in parts]
    answer = {"shape": picture.pixels.shape, "values": values, "digest": digest, "parts": lengths}
    return answer, parts


def _bytes(picture: Any) -> list[Any]:
    alpha = b"" if picture.alpha is None else _flat(picture.alpha)
    return [_flat(picture.pixels), alpha, picture.profile, picture.exif]


def _flat(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).data.cast("B")


def _data_bytes() -> int:
    """Return the bytes that RLIMIT_DATA counts; a guess if the system does not tell."""
    if sys.platform != "linux":
        return 2**29
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmData:")), 2**29)


if __name__ == "__main__":
    sys.exit(main())
