"""A local web server that translates images which a browser sends to it."""

from __future__ import annotations

import base64
import io
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from torch import Tensor

from fastunit.common.choices import DIRECTIONS, Direction
from fastunit.common.errors import DataError, StorageError, UserError
from fastunit.data import decoding, image_io
from fastunit.data.image_io import Limits
from fastunit.data.picture import Wanted
from fastunit.inference.translator import Translator, eight_bits, of_memory
from fastunit.models.styled_pair import StyledPair

LOCAL = ("127.0.0.1", "localhost", "::1")
STYLES = 8  # that are drawn, beside the mean style
_logger = logging.getLogger(__name__)


class Server(ThreadingHTTPServer):
    """Serves a page at ``/``, examples at ``/example/N`` and translations at ``/translate``.

    ``POST /translate?direction=a2b`` takes an image file as its body, and answers with JSON: the
    input, the translation and the cycle (None where there is no way back) as data URLs of PNG, or
    "error", a sentence. Networks with styles take ``&style=S``, from 0, the mean style, over drawn
    styles 1, 2, ... to `STYLES`; between two of them their codes are interpolated. One image is
    translated at a time. On a loopback address, requests under another host name are refused, so
    that no other site can use the server through a browser.

    Args:
        translator: the networks.
        address: host and port; port 0 takes a free one.
        page: the HTML at ``/``.
        examples: image files that the page offers.
        limits: of files and images.

    Raises:
        UserError: the networks have other than 1 or 3 channels.
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(
        self,
        translator: Translator,
        address: tuple[str, int],
        page: str,
        examples: Sequence[Path],
        limits: Limits,
    ) -> None:
        for name in ("a", "b"):
            if (channels := translator.config.domain(name).channels) not in (1, 3):
                raise UserError(
                    f"the page shows images of 1 or 3 channels, and domain {name} has {channels}; "
                    "use fastunit translate"
                )
        super().__init__(address, _Handler)
        self._translator, self._lock = translator, Lock()
        self.page, self.examples, self.limits = page, examples, limits
        self.local = address[0] in LOCAL

    def translated(self, data: bytes, direction: Direction, place: float) -> dict[str, Any]:
        """Translate an image file's bytes in the style of a place from 0 to `STYLES`.

        Raises:
            DataError: with the reason, if it cannot be translated.
        """
        reading = image_io.reading_of(self._translator.config, direction[0])
        with self._lock, torch.inference_mode():
            pixels = _decoded(data, replace(reading, limits=self.limits))
            start = time.perf_counter()
            y = self._translator.translate(pixels, direction, style=self._style(place))
            seconds = time.perf_counter() - start
            back: Direction = "b2a" if direction == "a2b" else "a2b"
            try:
                own = None
                if self.styled:
                    own = self._translator.style_of(pixels, direction[0])
                cycle = self._translator.translate(y, back, style=own)
            except UserError:  # an exported file holds one direction
                cycle = None
        height, width = pixels.shape[:2]
        return {
            "input": _data_url(eight_bits(pixels)),
            "translation": _data_url(eight_bits(y)),
            "cycle": None if cycle is None else _data_url(eight_bits(cycle)),
            "text": f"{width}x{height} pixels, {seconds:.2f} s on {self._translator.device}",
        }

    @property
    def styled(self) -> bool:
        """Whether the networks have styles."""
        return isinstance(self._translator.networks, StyledPair)

    def _style(self, place: float) -> Tensor | None:
        if not self.styled or place == 0:
            return None
        drawn = self._translator.random_styles(STYLES)
        codes = torch.cat([torch.zeros_like(drawn[:1]), drawn])
        before = min(int(place), STYLES - 1)
        return torch.lerp(codes[before], codes[before + 1], place - before)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # seconds that a silent client is waited for

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        path = urlsplit(self.path).path
        number = path.removeprefix("/example/")
        if path == "/":
            self._answer(200, self.server.page.encode(), "text/html; charset=utf-8")
        elif number.isdecimal() and int(number) < len(self.server.examples):
            try:
                data = image_io.content(self.server.examples[int(number)])
            except DataError as error:
                self._refuse(404, f"this example cannot be read: {error}")
            else:
                self._answer(200, data, "application/octet-stream")
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        direction, place = (query.get(k, [d])[0] for k, d in (("direction", ""), ("style", "0")))
        if url.path != "/translate" or direction not in DIRECTIONS or not _is_place(place):
            self._refuse(404, "there is no such page")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._refuse(411, "the length of the file is missing")
            return
        if int(length) > self.server.limits.bytes:
            most = self.server.limits.bytes / 2**20
            self._refuse(413, f"the file is larger than the {most:.0f} MiB that are accepted")
            return
        try:
            found = self.server.translated(self.rfile.read(int(length)), direction, float(place))
        except UserError as error:
            self._refuse(400, f"this file cannot be translated: {error}")
        except (MemoryError, RuntimeError) as error:
            if not of_memory(error):
                raise
            self._refuse(507, "the memory is too small for an image of this size")
        else:
            self._answer(200, json.dumps(found).encode(), "application/json")

    def _is_ours(self) -> bool:
        """Refuse requests to a loopback address under another name (DNS rebinding)."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.local and host not in LOCAL:
            self._refuse(403, f"this page is for {LOCAL[0]} only")
            return False
        return True

    def _refuse(self, status: int, sentence: str) -> None:
        self.close_connection = True
        self._answer(status, json.dumps({"error": sentence}).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        _logger.debug(format, *args)


def _is_place(text: str) -> bool:
    try:
        return 0 <= float(text) <= STYLES
    except ValueError:
        return False


def _decoded(data: bytes, reading: image_io.Reading) -> np.ndarray:
    """Decode a file's bytes, which the process that decodes reads from a temporary file."""
    try:
        with tempfile.NamedTemporaryFile(prefix="fastunit-") as file:
            file.write(data)
            file.flush()
            return decoding.picture(Path(file.name), reading, Wanted()).pixels
    except OSError as error:
        raise StorageError(
            f"the image cannot be kept in {tempfile.gettempdir()}: {error}"
        ) from error


def _data_url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    image_io.to_image(pixels).save(buffer, "PNG", compress_level=3)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
