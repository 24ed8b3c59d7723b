"""The run's page: complete, self-contained, readable without scripts or network."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastunit.report import groups, page
from fastunit.report.grid import draw_grid
from fastunit.report.metrics import Metrics

RESULT = {
    "iteration": 1500,
    "images_per_s": 21.46,
    "seconds": 312.4,
    "pairs": 64,
    "a2b": {
        "paired_l1": 0.1234,
        "identity_l1": 0.8,
        "constant_l1": 0.1645,
        "statistics_l1": 0.4321,
        "retrieval": 0.984,
        "chance": 0.0156,
    },
    "b2a": {"paired_l1": 0.2, "identity_l1": 0.1, "left_out": {"retrieval": "<one> pair"}},
}


class _Elements(HTMLParser):
    """Collects (tag, attributes) and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with Metrics(tmp_path) as metrics:
        for iteration in range(10, 60, 10):
            metrics.write(iteration, {"cycle_a": 1 / iteration, "generator_total": 3.0})
    return tmp_path


def _samples(run_dir: Path, count: int, size: tuple[int, int] = (8, 8)) -> None:
    (run_dir / "samples").mkdir()
    for i in range(count):
        picture = Image.new("RGB", size, (40 * i % 256, 80 * i % 256, 120 * i % 256))
        picture.save(run_dir / "samples" / f"{100 * i:08d}.png")
    picture.save(run_dir / "samples" / "latest.png")


def _write(
    run_dir: Path, result: dict[str, Any] | None = None, title: str = "demo", **more: Any
) -> _Elements:
    more = {"config_text": "seed: 1"} | more
    page.write_page(run_dir, title, result=result, **more)
    return _Elements((run_dir / "index.html").read_text(encoding="utf-8"))


def _picture(source: str) -> Image.Image:
    header, data = source.split(",")
    assert header == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_nothing_is_fetched(run_dir: Path) -> None:
    _samples(run_dir, 3)
    elements = _write(run_dir, RESULT)
    assert len(elements.all("img")) == 3
    assert not elements.all("link")
    # Vector shapes refer to each other by "#name" within the page; all else would be a fetch.
    for _, attributes in elements.found:
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/webp"))
    styles = (run_dir / "index.html").read_text(encoding="utf-8")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", styles))
    assert "@import" not in styles


def test_each_grid_is_embedded_in_order_under_its_iteration(run_dir: Path) -> None:
    _samples(run_dir, 3)
    elements = _write(run_dir)
    colours = np.array([_picture(img["src"]).getpixel((0, 0)) for img in elements.all("img")])
    assert np.abs(colours - [(0, 0, 0), (40, 80, 120), (80, 160, 240)]).max() <= 4
    assert [img["alt"] for img in elements.all("img")] == [
        f"samples at iteration {i}" for i in (0, 100, 200)
    ]


def test_many_grids_are_thinned_evenly_and_keep_both_ends(run_dir: Path) -> None:
    _samples(run_dir, 41)
    alts = [img["alt"] for img in _write(run_dir).all("img")]
    shown = [int(alt.split()[-1]) for alt in alts]
    assert len(shown) == 16
    assert (shown[0], shown[-1]) == (0, 4000)
    assert set(np.diff(shown)) == {200, 300}


def test_without_scripts_every_grid_is_seen_and_no_dead_slider(run_dir: Path) -> None:
    _samples(run_dir, 3)
    elements = _write(run_dir)
    assert not any("hidden" in attributes for attributes in elements.all("figure"))
    (slider,) = elements.all("input")  # that of pairs is made by the script
    assert "hidden" in slider
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")


def test_wide_grids_are_shrunk(run_dir: Path) -> None:
    _samples(run_dir, 1, size=(2200, 600))
    (img,) = _write(run_dir).all("img")
    assert _picture(img["src"]).size == (1100, 300)


def _noisy_grids(run_dir: Path, count: int, rows: dict[str, int]) -> None:
    """Write grids of noise, which no format makes small."""
    rng = np.random.default_rng(0)
    for i in range(count):
        images = {
            label: rng.integers(0, 256, (8, height, height, 3), dtype=np.uint8)
            for label, height in rows.items()
        }
        draw_grid(images, run_dir / "samples" / f"{i:08d}.png")


def test_the_page_of_a_long_run_of_photographs_is_at_most_3_mb(run_dir: Path) -> None:
    with Metrics(run_dir) as metrics:
        names = [name for group in groups.LOSSES for name in group.names]
        for iteration in range(2000):
            noise = np.random.default_rng(iteration).random(len(names))
            metrics.write(iteration, dict(zip(names, map(float, noise), strict=True)))
    _noisy_grids(run_dir, 20, {"input a": 128, "a to b": 128, "input b": 128, "b to a": 128})
    elements = _write(run_dir, RESULT)
    assert len(elements.all("img")) == 16 + 2 * 2 * page.PAIRS
    assert (run_dir / "index.html").stat().st_size <= 3_000_000


def test_inputs_and_translations_lie_beside_each_other_for_the_slider(run_dir: Path) -> None:
    rows = {"input a": 60, "a to b": 180, "input b": 120, "b to a": 240}
    draw_grid(
        {label: np.full((2, 20, 30, 3), level, np.uint8) for label, level in rows.items()},
        run_dir / "samples" / "00000040.png",
    )
    elements = _write(run_dir)
    shown = [
        (img["alt"], _picture(img["src"]).getpixel((60, 40))[0])
        for img in elements.all("img")
        if "samples" not in img["alt"]
    ]
    wanted = [
        (f"{way}, {number}, {when}", rows[row])
        for way, source in (("a to b", "input a"), ("b to a", "input b"))
        for number in (1, 2)
        for when, row in (("before", source), ("after", way))
    ]
    assert [alt for alt, _ in shown] == [alt for alt, _ in wanted]
    assert all(
        abs(found - level) <= 3 for (_, found), (_, level) in zip(shown, wanted, strict=True)
    )
    assert not any("hidden" in figure for figure in elements.all("figure"))


def test_the_status_says_how_far_training_is_and_how_long_it_takes(run_dir: Path) -> None:
    lines = [{"iteration": i, "time": 2.0 * i} for i in range(100, 110)]
    lines = [{"iteration": 99, "time": 5000.0}, *lines]  # of the process before
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    elements = _write(run_dir, iteration=109, total=1009)
    assert "iteration 109 of 1,009 (11%), about 30 min left" in elements.words
    assert elements.all("progress") == [{"max": "1009", "value": "109"}]
    assert "Finished at iteration 1,500" in _write(run_dir, RESULT).words


def test_the_environment_is_shown(run_dir: Path) -> None:
    found = {
        "device": "cpu (2 threads)",
        "threads": 2,
        "versions": {"torch": "2.13.0", "cuda": None},
    }
    found |= {"commit": None, "command": ["train", "--data", "<x>"], "seed": 7}
    (run_dir / "environment.json").write_text(json.dumps(found))
    words = _write(run_dir).words
    assert "cpu (2 threads)" in words and "torch 2.13.0" in words and "cuda" not in words
    assert "train --data <x>" in words and "not a checkout" in words


def test_the_result_stands_beside_what_needs_no_network(run_dir: Path) -> None:
    elements = _write(run_dir, RESULT)
    for part in ("Iteration 1,500", "21.5 images/s", "312 s", "64 held-out", "25% below"):
        assert part in elements.words
    assert "translation0.12340.9840.2000-" in elements.words
    assert "constant image0.1645---" in elements.words and "chance-0.016--" in elements.words
    assert "b to a: the translation does NOT beat the unchanged input" in elements.words
    assert "without retrieval: <one> pair" in elements.words and not elements.all("one")
    assert "constant image: the mean of" in elements.words


def test_a_run_without_pairs_says_so(run_dir: Path) -> None:
    result = {key: RESULT[key] for key in ("iteration", "images_per_s", "seconds")}
    elements = _write(run_dir, result)
    assert "no held-out error" in elements.words
    assert not elements.all("table")


def test_a_run_that_goes_on_has_a_page_before_its_first_sample(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text("")
    elements = _write(run_dir)
    assert "Training is running" in elements.words
    assert not elements.all("img")


def test_curves_are_inline(run_dir: Path) -> None:
    elements = _write(run_dir)
    assert len(elements.all("svg")) == 1
    assert "generator_total" in elements.words


def test_title_and_configuration_are_text_not_markup(run_dir: Path) -> None:
    elements = _write(run_dir, title="<b>&</b>", config_text="name: <script>alert(1)</script>")
    assert "<b>&</b>" in elements.words
    assert "name: <script>alert(1)</script>" in elements.words
    assert len(elements.all("script")) == 1
    assert not elements.all("b")
    assert len(elements.all("details")) == 1


def test_the_page_is_replaced_whole(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(run_dir, title="first")
    before = (run_dir / "index.html").read_bytes()

    def full_disk(self: Path, text: str, **options: str) -> None:
        self.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        page.write_page(run_dir, "second", "", None)
    assert (run_dir / "index.html").read_bytes() == before
    assert not list(run_dir.glob(".*"))
