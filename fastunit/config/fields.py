"""Build a frozen dataclass from a mapping; errors name the wrong key, type or value."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastunit.common.errors import ConfigError
from fastunit.common.text import brief

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
MOST = 10**9  # of every number that has no other limit: larger ones crash later, far from the key
LONGEST = 4096  # characters of a text: the longest path on Linux
_NEAR = 40  # characters of a wrong name that are compared with the known ones, a quadratic search
_logger = logging.getLogger(__name__)


def key(default: Any, doc: str, **limits: Any) -> Any:
    """Declare a field that `build` fills and checks: its default, meaning and limits."""
    return field(default=default, metadata={"doc": doc, **limits})


def section(cls: type, doc: str) -> Any:
    """Declare a field that is itself a dataclass: a section."""
    return field(default_factory=cls, metadata={"doc": doc})


def build(cls: type[Options], values: object, name: str) -> Options:
    """Return an instance of `cls` with the given values; missing keys take their defaults.

    A field of a Literal type takes one of its values. Field metadata may hold the limits `low`
    (inclusive), `high` (inclusive, `MOST` if there is none) and `below` (exclusive). Keys in the
    class's `UNUSED`, if it has one, are dropped with a log message; some of them must be 0
    (`Unused.only_zero`).

    Args:
        cls: the dataclass.
        values: a mapping of its keys.
        name: the section's dotted name for messages, "" for the root.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a section of keys, not {brief(values)}")
    specs = {spec.name: spec for spec in dataclasses.fields(cls)}
    values = _without_unused(values, getattr(cls, "UNUSED", {}), name)
    for key in values:
        if not isinstance(key, str) or key not in specs:
            raise ConfigError(_unknown(cls, str(key), name))
    hints = typing.get_type_hints(cls)
    filled = {}
    for key, value in values.items():
        full = f"{name}.{key}" if name else key
        filled[key] = _convert(hints[key], value, full, specs[key].metadata)
    return cls(**filled)


@dataclasses.dataclass(frozen=True)
class Unused:
    """A key of other programs' files that has no effect here, and its meaning there.

    With `only_zero`, any value but 0 is an error: it would ask for a feature that is not here.
    """

    meaning: str
    only_zero: bool = False


def _without_unused(
    values: Mapping[str, Any], unused: Mapping[str, Unused], name: str
) -> Mapping[str, Any]:
    found = [key for key in values if key in unused]
    said: dict[str, list[str]] = {}
    for key in found:
        full = f"{name}.{key}" if name else key
        if unused[key].only_zero and _number(values[key]) != 0:
            value, meaning = brief(values[key]), unused[key].meaning
            raise ConfigError(f"{full}={value} is {meaning}; leave it out, or set it to 0")
        said.setdefault(unused[key].meaning, []).append(full)
    for meaning, keys in said.items():
        _logger.info("%s: read and unused (%s)", ", ".join(keys), meaning)
    return {key: value for key, value in values.items() if key not in unused}


def known_keys(cls: type) -> list[str]:
    """Return every dotted key of a dataclass tree."""
    keys = []
    for spec in dataclasses.fields(cls):
        keys.append(spec.name)
        if dataclasses.is_dataclass(spec.default_factory):
            keys += [f"{spec.name}.{key}" for key in known_keys(spec.default_factory)]
    return keys


def _unknown(cls: type, key: str, name: str) -> str:
    key = key if len(key) <= _NEAR else f"{key[:_NEAR]}..."
    full = f"{name}.{key}" if name else key
    where = f"section {name}" if name else "the configuration"
    near = difflib.get_close_matches(key, known_keys(cls), n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {name + '.' if name else ''}{near[0]}?"
    else:
        hint = "known keys: " + ", ".join(spec.name for spec in dataclasses.fields(cls))
    return f"unknown key {full!r} in {where}; {hint}"


def _convert(hint: Any, value: Any, key: str, limits: Mapping[str, Any]) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, key)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in hint.__args__ if option is not type(None))
    if typing.get_origin(hint) is tuple:
        return _pair(typing.get_args(hint)[0], value, key, limits)
    if choices := choices_of(hint):
        return _chosen(choices, value, key)
    value = _typed(hint, value, key)
    _check(value, key, limits)
    return value


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal type; empty for any other type."""
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _chosen(choices: tuple[str, ...], value: Any, key: str) -> str:
    if isinstance(value, bool) and "on" in choices:
        value = "on" if value else "off"  # YAML 1.1 reads on and off as booleans
    value = _typed(str, value, key)
    if value not in choices:
        near = difflib.get_close_matches(value[:_NEAR], choices, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{key}={brief(value)} must be one of {', '.join(choices)}{hint}")
    return value


def _pair(hint: type, value: Any, key: str, limits: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (low, high) from a list of two numbers, the first the smaller."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{key}={brief(value)} must be two numbers, [low,high]")
    low, high = (_typed(hint, number, key) for number in value)
    for number in (low, high):
        _check(number, key, limits)
    if low >= high:
        raise ConfigError(f"{key}={brief(value)} must be [low,high] with low below high")
    return low, high


def _typed(hint: type, value: Any, key: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        number = _number(value)
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    if hint is str and isinstance(value, str):
        return value
    kind = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    raise ConfigError(f"{key}={brief(value)} must be {kind[hint]}")


def _number(value: Any) -> float | None:
    """Return a finite float or None. YAML 1.1 reads 1e-4 as text, so numeric text counts."""
    if not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _check(value: Any, key: str, limits: Mapping[str, Any]) -> None:
    if isinstance(value, str):
        if len(value) > LONGEST or "\0" in value:
            raise ConfigError(
                f"{key}={brief(value)} must have at most {LONGEST} characters, none 0"
            )
        return
    if "below" not in limits:
        limits = {"high": MOST, **limits}
    for limit, broken, words in (
        ("low", lambda v, x: v < x, "at least"),
        ("high", lambda v, x: v > x, "at most"),
        ("below", lambda v, x: v >= x, "below"),
    ):
        if limit in limits and broken(value, limits[limit]):
            raise ConfigError(f"{key}={brief(value)} must be {words} {limits[limit]}")
