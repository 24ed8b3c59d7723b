"""Curves of the losses."""

from __future__ import annotations

import gc
import xml.etree.ElementTree as ElementTree

import numpy as np
from matplotlib.figure import Figure

from fastunit.report.curves import curves_svg


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter()]


def test_curves_are_grouped_and_unrecorded_losses_have_no_panel() -> None:
    records = [{"iteration": i, "kl_a": 1.0 + i, "cycle_b": 2.0 - i} for i in range(50)]
    texts = _texts(curves_svg(records))
    assert {"KL of the codes", "kl_a", "cycle (L1)", "cycle_b"} <= set(texts)
    assert not {"kl_b", "perceptual", "totals"} & set(texts)


def test_curves_can_be_drawn_from_any_records() -> None:
    assert "KL" not in "".join(_texts(curves_svg([])))
    assert "kl_a" in _texts(curves_svg([{"iteration": 10, "kl_a": 1.0}]))
    records = [{"iteration": 10, "kl_a": "nan"}, {"iteration": 20, "kl_b": 1.0}]
    texts = _texts(curves_svg(records))
    assert "kl_b" in texts
    assert "kl_a" not in texts


def test_curves_of_a_long_run_stay_small_and_follow_the_theme() -> None:
    noise = np.random.default_rng(0).normal(size=20_000).tolist()
    svg = curves_svg([{"iteration": i, "kl_a": y} for i, y in enumerate(noise)])
    assert len(svg) < 200_000
    assert "currentColor" in svg
    assert "#000000" not in svg


def test_no_time_is_spent_on_a_place_for_the_legend(monkeypatch) -> None:
    """On a slow machine Matplotlib warns of it, among the messages of a run."""
    monkeypatch.delattr("matplotlib.legend.Legend._find_best_position")
    curves_svg([{"iteration": i, "kl_a": 1.0} for i in range(5)])


def test_figures_do_not_pile_up() -> None:
    records = [{"iteration": i, "kl_a": 1.0} for i in range(5)]
    gc.collect()
    gc.disable()
    try:
        curves_svg(records)
        assert not [each for each in gc.get_objects() if type(each) is Figure]
    finally:
        gc.enable()
