"""Text that may be printed: nothing in it reaches a terminal as a command, or cannot be encoded."""

from __future__ import annotations

import os

from fastunit.common import text
from fastunit.common.errors import DataError


def test_unsafe_characters_become_escapes():
    assert text.printable("a\x1b[2Jb\x9b\x7f\r") == "a\\x1b[2Jb\\x9b\\x7f\\x0d"
    assert text.printable("\u202egnp.exe\u2028") == "\\u202egnp.exe\\u2028"
    assert text.printable("ä 写 é\n\t") == "ä 写 é\n\t"


def test_bytes_that_are_no_text_can_be_printed():
    name = os.fsdecode(b"caf\xe9.png")
    assert text.printable(name) == "caf\\xe9.png"
    text.printable("".join(map(chr, range(0xD800, 0xE000)))).encode()


def test_a_name_is_one_line():
    assert text.name("a\nerror: b\tc") == "a\\nerror: b\\tc"


def test_messages_of_errors_can_be_printed():
    name = os.fsdecode(b"x\xe9")
    assert str(DataError(f"cannot read {name} \x1b[1m")) == "cannot read x\\xe9 \\x1b[1m"


def test_values_of_any_size_are_brief():
    deep: list = []
    for _ in range(50):
        deep = [deep, *"abcdefghij"]
    for value in (10**5000, "x" * 10**6, deep, {i: "y" * 999 for i in range(999)}):
        assert len(text.brief(value)) < 1500
    assert text.brief("ab") == "'ab'" and text.brief(2.5) == "2.5"
