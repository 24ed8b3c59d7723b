"""The local page: what it translates, what it refuses, and that it shows in a browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastunit
from fastunit import demo
from fastunit.common.errors import UserError
from fastunit.inference.demo import Server
from tests.support.doubles import raising
from tests.support.munit import GEN

MUNIT = {"network": "munit", "gen": GEN, "share": {}}
LOUD = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)


def png(pixels: np.ndarray = LOUD) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def munit(tmp_path_factory, save_networks) -> Path:
    return save_networks(tmp_path_factory.mktemp("munit"), **MUNIT)


@pytest.fixture
def serve(model: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server on a free port, with options of the command."""
    running: list[tuple[Server, Thread]] = []

    def start(*options: object, checkpoint: Path = model) -> Server:
        argv = [str(each) for each in (checkpoint, "--port", 0, "--device", "cpu", *options)]
        server = demo.server(demo._parser("demo").parse_args(argv))
        thread = Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: Server, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    host, port = server.server_address[:2]
    request = urllib.request.Request(f"http://{host!s}:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def translated(
    server: Server, data: bytes, way: str = "a2b", style: str = ""
) -> tuple[int, dict[str, Any]]:
    status, body = ask(server, f"/translate?direction={way}{style}", data)
    return status, json.loads(body)


def pixels(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("way", ["a2b", "b2a"])
def test_an_image_is_translated_there_and_back_as_by_the_library(serve, model, way):
    status, found = translated(serve(), png(), way)
    translator = fastunit.load(model, "cpu")
    there = translator.translate(LOUD, way)
    assert status == 200 and found["text"].startswith("30x21 pixels")
    np.testing.assert_array_equal(pixels(found["input"]), LOUD)
    np.testing.assert_array_equal(pixels(found["translation"]), there)
    back = translator.translate(there, "b2a" if way == "a2b" else "a2b")
    np.testing.assert_array_equal(pixels(found["cycle"]), back)


def test_the_slider_goes_from_the_mean_style_over_drawn_ones(serve, munit):
    server, translator = serve(checkpoint=munit), fastunit.load(munit, "cpu")
    assert b'id="style" min="0" max="8"' in ask(server, "/")[1]
    codes = translator.random_styles(8)
    wanted = {"": None, "&style=1": codes[0], "&style=8": codes[7]}
    wanted["&style=2.25"] = codes[1] * 0.75 + codes[2] * 0.25
    for place, style in wanted.items():
        _, found = translated(server, png(), style=place)
        there = translator.translate(LOUD, "a2b", style=style)
        assert np.abs(pixels(found["translation"]).astype(int) - there).max() <= 1
        own = translator.style_of(LOUD, "a")
        back = translator.translate(pixels(found["translation"]), "b2a", style=own)
        assert np.abs(pixels(found["cycle"]).astype(int) - back).max() <= 1
    for nonsense in ("9", "-1", "x", "nan"):
        assert translated(server, png(), style=f"&style={nonsense}")[0] == 404


def test_networks_without_styles_have_no_slider(serve):
    server = serve()
    assert b'id="style"' not in ask(server, "/")[1]
    found = [translated(server, png(), style=style)[1] for style in ("", "&style=3")]
    assert found[0]["translation"] == found[1]["translation"]


def test_sixteen_bits_are_shown_too(serve):
    buffer = io.BytesIO()
    gray = np.random.default_rng(0).integers(0, 65536, (21, 30), dtype=np.uint16)
    Image.fromarray(gray).save(buffer, "PNG")
    status, found = translated(serve(), buffer.getvalue())
    assert status == 200
    assert np.abs(pixels(found["input"])[..., 0] - gray / 257.0).max() <= 1
    assert pixels(found["cycle"]).shape == (21, 30, 3)


def test_the_page_offers_the_examples_of_a_folder(serve, photos):
    server = serve("--images", photos)
    status, page = ask(server, "/")
    assert status == 200 and page.count(b"data-example=") == 4
    assert b'data-way="a2b">1<' in page and b'data-way="b2a">4<' in page
    assert ask(server, "/example/0")[1] == (photos / "testA/0.png").read_bytes()
    assert ask(server, "/example/4")[0] == 404


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no image", "this file cannot be translated: not an image of the formats JPEG, PNG"),
        (png()[:-40], "this file cannot be translated: damaged or truncated"),
        (b"", "empty: zero bytes"),
        (
            png(np.zeros((201, 100, 3), np.uint8)),
            "too large: 100x201 pixels, more than --max-pixels=20000",
        ),
        (b"x" * (2**20 + 1), "the file is larger than the 1 MiB"),
    ],
    ids=["text", "truncated", "empty", "too many pixels", "too many bytes"],
)
def test_what_cannot_be_translated_is_a_sentence(serve, data, words):
    server = serve("--max-pixels", 20_000, "--max-mb", 1)
    status, found = translated(server, data)
    assert status in (400, 413) and words in found["error"]
    assert translated(server, png())[0] == 200  # it goes on


def test_it_listens_on_this_machine_only_and_answers_no_other_name(serve):
    server = serve()
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_address[1]
    assert ask(server, "/", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
        assert ask(server, "/", Host=host)[0] == 403
        assert ask(server, "/translate?direction=a2b", png(), Host=host)[0] == 403


@pytest.mark.parametrize(
    "path", ["/x", "/example/", "/example/-1", "/example/0", "/../etc/passwd", "/translate"]
)
def test_there_are_no_other_pages(serve, path):
    assert ask(serve(), path)[0] == 404


def test_a_post_needs_a_known_direction(serve):
    server = serve()
    assert ask(server, "/translate?direction=up", png())[0] == 404
    assert ask(server, "/other?direction=a2b", png())[0] == 404


def test_a_taken_port_and_a_missing_checkpoint_are_one_message(model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert demo.main([str(model), "--port", port, "--device", "cpu"]) == 2
        assert "choose another --port" in capsys.readouterr().err
    assert demo.main(["nowhere", "--device", "cpu"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_networks_of_five_channels_have_no_page(tmp_path, save_networks, serve):
    wide = save_networks(tmp_path / "run", input_dim_b=5)
    with pytest.raises(UserError, match="of 1 or 3 channels, and domain b has 5; use fastunit"):
        serve(checkpoint=wide)


def test_ctrl_c_ends_it(model, monkeypatch, capsys):
    monkeypatch.setattr(Server, "serve_forever", raising(KeyboardInterrupt()))
    assert demo.main([str(model), "--port", "0", "--device", "cpu"]) == 0
    assert "open http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_browser_shows_the_first_example(serve, photos, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    server = serve("--images", photos)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'u'}"]
    command = [chromium, *options, "--virtual-time-budget=20000", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.count('src="data:image/png;base64,') == 5, done.stderr
    assert "30x24 pixels" in done.stdout and 'id="result" hidden' not in done.stdout
