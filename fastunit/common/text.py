"""Text as it may be printed: names of files can hold control characters and bytes of any kind."""

from __future__ import annotations

import re
import reprlib

# Control characters but newline and tab, what reverses the direction of text, line separators, and
# surrogates, by which Python represents the bytes of names that are not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
_LONGEST_INTEGER = 4000  # bits; Python refuses to print integers of more than 4300 digits


def printable(text: object) -> str:
    """Return `text` with unsafe characters as escapes (``\\x1b``); newlines and tabs remain."""
    return _UNSAFE.sub(_escaped, str(text))


def name(path: object) -> str:
    """Return a file's name or path on one line, with unsafe characters as escapes."""
    return printable(path).replace("\n", "\\n").replace("\t", "\\t")


def brief(value: object) -> str:
    """Return a value's repr, shortened: values in messages may be of any size and depth."""
    if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
        return f"<an integer of {value.bit_length()} bits>"
    return _BRIEF.repr(value)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlevel = 3
