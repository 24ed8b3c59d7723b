"""YAML as configurations use it: the types of JSON, without aliases, tags and merge keys.

Values are built here from the parser's events. PyYAML's own constructors raise various exceptions
on odd scalars (``2001-13-45``, ``0x_``), and aliases make values of exponential size.
"""

from __future__ import annotations

import re
from typing import Any

from fastunit.common.errors import ConfigError
from fastunit.common.text import brief

LONGEST = 2**16  # characters of a text; all keys with comments take some 5,000
DEEPEST = 8  # levels of nesting
_WORDS = {"": None, "~": None, "null": None}
_WORDS |= dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]{0,39})")
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d{1,4})?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_OCTAL = re.compile(r"[-+]?0[0-9_]+")


def parse(text: str) -> Any:
    """Return the value of a YAML text: a dict, list, string, number, boolean or None.

    Words and numbers are read as in YAML 1.1 (``on`` is true), but other bases, leading zeros,
    dates and sexagesimal numbers are none: they stay text.

    Raises:
        ConfigError: the text is too long, too deeply nested, not YAML, has more than one document
            or a key twice, or uses aliases, tags or merge keys; the message gives the reason.
    """
    import yaml

    if len(text) > LONGEST:
        raise ConfigError(f"of {len(text):,} characters; configurations have at most {LONGEST:,}")
    try:
        builder = _Builder()
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.add(event)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        mark, what = error.problem_mark, error.problem or error.context
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"not valid YAML: {what}{where}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, OverflowError) as error:  # of characters as \U99999999
        raise ConfigError(f"not valid YAML: {error}") from error
    return builder.value


class _Builder:
    """Builds a value from the events of one document."""

    def __init__(self) -> None:
        self.value: Any = None
        self._open: list[Any] = []  # the containers around the next value
        self._keys: list[str | None] = []  # for each of them the key that waits for its value
        self._documents = 0

    def add(self, event: Any) -> None:
        """Process one event of PyYAML's parser."""
        kind = type(event).__name__
        if kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise ConfigError("more than one document; configurations have one")
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._refuse_features(event)
            container: Any = {} if kind == "MappingStartEvent" else []
            self._put(container)
            self._open.append(container)
            self._keys.append(None)
            if len(self._open) > DEEPEST:
                raise ConfigError(f"nested more than {DEEPEST} levels deep")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._open.pop()
            self._keys.pop()
        elif kind == "AliasEvent":
            raise ConfigError(f"alias *{brief(event.anchor)[1:-1]}; write the value out")
        elif kind == "ScalarEvent":
            self._refuse_features(event)
            self._scalar(event.value, plain=event.style is None)

    def _refuse_features(self, event: Any) -> None:
        if event.anchor is not None:
            raise ConfigError(f"anchor &{brief(event.anchor)[1:-1]}; write values out")
        if event.tag is not None:
            raise ConfigError(f"tag {brief(event.tag)}; leave it out")

    def _scalar(self, text: str, plain: bool) -> None:
        if not self._open or isinstance(self._open[-1], list) or self._keys[-1] is not None:
            self._put(_plain(text) if plain else text)
        elif plain and text == "<<":
            raise ConfigError("merge key <<; write the keys out")
        elif text in self._open[-1]:
            raise ConfigError(f"key {brief(text)} stands twice")
        else:
            self._keys[-1] = text

    def _put(self, value: Any) -> None:
        if not self._open:
            self.value = value
        elif isinstance(self._open[-1], list):
            self._open[-1].append(value)
        elif self._keys[-1] is None:
            raise ConfigError("a key is a list or a mapping; keys are words")
        else:
            self._open[-1][self._keys[-1]] = value
            self._keys[-1] = None


def _plain(text: str) -> Any:
    """Return the value of a scalar without quotes."""
    word = text.lower()
    if word in _WORDS and text in (word, word.capitalize(), word.upper()):
        return _WORDS[word]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        raise ConfigError(f"{brief(text)}: write numbers without leading zeros")
    if _FLOAT.fullmatch(text):
        digits = text.lower().replace("_", "")
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    return text
