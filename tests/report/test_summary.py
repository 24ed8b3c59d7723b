"""The last lines of a training: the table, and whether the network beats having none."""

from __future__ import annotations

import pytest

from fastunit.report import summary

FOUND = {
    "paired_l1": 0.06,
    "identity_l1": 0.7549,
    "constant_l1": 0.1386,
    "statistics_l1": 0.08,
    "retrieval": 0.984,
    "identity_retrieval": 0.0312,
    "statistics_retrieval": 1.0,
    "chance": 1 / 64,
}
RESULT = {"pairs": 64, "a2b": FOUND, "b2a": FOUND | {"paired_l1": 0.1453}}


def test_the_table_sets_the_translation_beside_what_needs_no_network():
    assert summary.table(RESULT) == [
        ["", "a to b: error", "a to b: retrieval", "b to a: error", "b to a: retrieval"],
        ["translation", "0.0600", "0.984", "0.1453", "0.984"],
        ["unchanged input", "0.7549", "0.031", "0.7549", "0.031"],
        ["constant image", "0.1386", "-", "0.1386", "-"],
        ["position statistics", "0.0800", "1.000", "0.0800", "1.000"],
        ["chance", "-", "0.016", "-", "0.016"],
    ]


def test_columns_are_aligned_and_every_row_is_explained():
    lines = summary.lines(RESULT)
    assert "64" in lines[0]
    for name in ("error", "retrieval", "constant image", "position statistics"):
        assert any(line.startswith(f"{name}:") for line in lines)
    table = lines[-8:-2]
    assert len({len(line) for line in table}) == 1
    ends = [line.index(" 0.0600") + 7 for line in table if "translation" in line]
    assert ends == [table[0].index("error") + 5]


def test_it_is_said_whether_the_best_of_the_others_is_beaten():
    assert summary.sentences(RESULT) == [
        "a to b: the translation's error is 25% below that of the position statistics",
        "b to a: the translation does NOT beat the position statistics, which needs no network "
        "(0.1453 against 0.0800)",
    ]


@pytest.mark.parametrize("ours", [0.08, 0.0801, float("nan")])
def test_what_is_no_better_does_not_beat(ours):
    said = summary.sentences(RESULT | {"a2b": FOUND | {"paired_l1": ours}})
    assert "does NOT beat the position statistics" in said[0]


def test_nothing_beats_an_input_that_is_already_right():
    right = FOUND | {"identity_l1": 0.0, "paired_l1": 0.0}
    assert "NOT beat the unchanged input" in summary.sentences(RESULT | {"b2a": right})[1]


@pytest.mark.parametrize("retrieval", [0.0, 1 / 64])
def test_translations_that_are_all_alike_are_said_to_be(retrieval):
    said = summary.sentences(RESULT | {"a2b": FOUND | {"retrieval": retrieval}})
    assert "not above chance" in said[1] and len(said) == 3


def test_what_was_left_out_has_a_dash_and_a_reason():
    names = ("constant_l1", "statistics_l1", "statistics_retrieval")
    kept = {name: value for name, value in FOUND.items() if name not in names}
    reasons = dict.fromkeys(names[:2], "images differ in size")
    result = RESULT | {"a2b": kept | {"left_out": reasons}}
    assert summary.table(result)[3][:3] == ["constant image", "-", "-"]
    assert summary.sentences(result)[:2] == [
        "a to b: the translation's error is 92% below that of the unchanged input",
        "a to b: without constant_l1, statistics_l1: images differ in size",
    ]
