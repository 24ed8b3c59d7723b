"""Scores in words: nearer, not nearer, or not to be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from fastunit.evaluation.distances import Measured
from fastunit.report import scores as report

NAMES = report.Names("KID", "FID")


def scores(ours: tuple[float, float], ceiling: tuple[float, float]) -> dict:
    sets = {"translation": Measured(*ours), "ceiling": Measured(*ceiling)}
    way = {"kernel": sets, "frechet": sets, "cycle_l1": Measured(0.1, None)}
    return {"a2b": way, "b2a": way}


@pytest.mark.parametrize(
    ("ours", "ceiling", "words"),
    [
        ((0.1, 0.01), (0.2, 0.01), "translations are nearer to real images"),
        ((0.3, 0.01), (0.2, 0.01), "translations are NOT nearer"),
        ((0.19, 0.01), (0.2, 0.01), "cannot be told from untranslated images"),
    ],
)
def test_the_sentence_follows_the_intervals(ours, ceiling, words):
    said = report.sentences(scores(ours, ceiling), NAMES)
    assert len(said) == 2 and all(words in line and "KID" in line for line in said)


def test_values_have_their_intervals():
    assert report.text(Measured(0.12345, 0.01)) == "0.1235 ± 0.0100"
    assert report.text(Measured(123.45, 6.78)) == "123.5 ± 6.8"
    assert report.text(Measured(0.5)) == "0.5000"


def test_a_row_for_each_checkpoint():
    rows = report.checkpoint_rows([(5, scores((0.1, 0.0), (1, 0)))] * 2, NAMES)
    assert rows[0] == [
        "iteration",
        "a to b: KID",
        "a to b: cycle L1",
        "b to a: KID",
        "b to a: cycle L1",
    ]
    assert rows[1] == rows[2] == ["5", "0.1000 ± 0.0000", "0.1000", "0.1000 ± 0.0000", "0.1000"]


def test_the_page_names_files_as_text():
    pixels = np.zeros((8, 8, 3), np.uint8)
    examples = {"a2b": {"worst": [report.Example("<b>.png", 0.5, [pixels, pixels])]}}
    page = report.page("t", scores((0.1, 0), (1, 0)), NAMES, examples, ["a <note>"])
    assert "&lt;b&gt;.png: error 0.500 (source, translation)" in page and "<b>" not in page
    assert "a &lt;note&gt;." in page


def test_a_measure_by_which_a_baseline_is_better_is_named():
    figures = {"paired_l1": 0.1, "identity_l1": 0.2}
    kinds = {
        "paired": {"l1": Measured(0.1), "psnr": Measured(20.0), "features": Measured(0.6)},
        "identity": {"l1": Measured(0.2), "psnr": Measured(19.0), "features": Measured(0.5)},
    }
    way = {"pairs": {"count": 2, **kinds, "figures": figures}, "cycle_l1": Measured(0.1)}
    said = "\n".join(report.sentences({"a2b": way, "b2a": way}, None))
    wanted = "by feature distance the translation does NOT beat the unchanged input (0.6000 against"
    assert said.count(wanted) == 2 and "PSNR" not in said and "50% below" in said


def test_diversity_has_a_table_of_its_own():
    found = scores((0.1, 0.0), (1, 0))
    assert "styles" not in str(report.tables(found, NAMES))
    found["a2b"] |= {"diversity": {"l1": Measured(0.25), "features": Measured(0.5)}}
    title, rows = report.tables(found, NAMES)[-1]
    assert title == "two random styles of an image: distance"
    assert rows[0] == ["", "L1", "features"]
    assert rows[1:] == [[way, "0.2500", "0.5000"] for way in ("a to b", "b to a")]
