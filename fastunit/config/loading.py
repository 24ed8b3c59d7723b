"""Load configurations from YAML, dictionaries and ``key=value``; dump them; list all keys."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from fastunit.common import regular
from fastunit.common.errors import ConfigError
from fastunit.common.text import brief
from fastunit.config import rules, yaml_text
from fastunit.config.fields import build, choices_of
from fastunit.config.schema import Config
from fastunit.config.schema_munit import MunitConfig

Settings = TypeVar("Settings")


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build and check a configuration.

    Args:
        values: keys of docs/configuration.md, sections as mappings; missing keys take their
            defaults.

    Returns:
        The configuration; a `MunitConfig` for network "munit".

    Raises:
        ConfigError: a key is unknown, a value is wrong, or two keys contradict each other; the
            message names the key, the value and the choices.
    """
    munit = isinstance(values, Mapping) and values.get("network") == "munit"
    config = build(MunitConfig if munit else Config, values, "")
    rules.check(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as plain dictionaries, ready for YAML or a checkpoint."""
    return dataclasses.asdict(config)


def load(path: str | Path | None = None, overrides: Sequence[str] = (), **changes: Any) -> Config:
    """Read a configuration from YAML, change it and check it.

    Args:
        path: a YAML file, fastunit's or the 2018 release's, or the name of a built-in
            configuration, such as "photos"; None is "demo".
        overrides: changes in the form of the command line's --set, such as ``"gen.dim=32"``.
        changes: changes by key; for a section, a mapping of the keys to change:
            ``load("photos", data_root="photos", gen={"dim": 32})``.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the message names it.
    """
    return resolve(_changed(read_yaml(path), changes), overrides, {})


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of values with changes applied, recursively in sections."""
    changed = dict(values)
    for name, change in changes.items():
        old = values.get(name)
        if isinstance(old, Mapping) and isinstance(change, Mapping):
            change = _changed(old, change)
        changed[name] = change
    return changed


def resolve(
    values: dict[str, Any],
    overrides: Sequence[str],
    extra: Mapping[str, Any],
    read: Callable[[Mapping[str, Any]], Settings] = from_dict,
) -> Settings:
    """Apply overrides, then the top-level keys of `extra`, and check the result.

    Args:
        values: as in `from_dict`; modified in place by the overrides.
        overrides: ``section.key=value``, the value as YAML.
        extra: top-level keys and their values.
        read: what builds and checks the settings; those of training UNIT unless told otherwise.

    Raises:
        ConfigError: as `from_dict`.
    """
    for text in overrides:
        _override(values, text)
    return read(values | dict(extra))


def read_yaml(path: str | Path | None) -> dict[str, Any]:
    """Return a YAML file's top-level mapping.

    Args:
        path: a file, or the name of a built-in configuration, such as "photos"; None is "demo".

    Raises:
        ConfigError: the file cannot be read, or is not a YAML mapping.
    """
    try:
        text = _text(path)
    except FileNotFoundError as error:
        raise ConfigError(_absent(str(path))) from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name with a zero byte
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        values = yaml_text.parse(text)
    except ConfigError as error:
        raise ConfigError(f"the configuration {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold 'key: value' lines, not {type(values).__name__}")
    return values


def names() -> list[str]:
    """Return the names of the built-in configurations."""
    files = (Path(item.name) for item in resources.files("fastunit.configs").iterdir())
    return sorted(file.stem for file in files if file.suffix == ".yaml")


def _absent(path: str) -> str:
    text = f"cannot read the configuration {path}: there is no file or built-in one of that name"
    near = difflib.get_close_matches(Path(path).stem, names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{text}; {hint}built-in ones are {', '.join(names())}"


def _text(path: str | Path | None) -> str:
    """Return the text of the file at `path`, or of the built-in one of that name."""
    name = "demo" if path is None else str(path)
    own = resources.files("fastunit.configs") / f"{name}.yaml"
    if path is None or ("/" not in name and not Path(path).is_file() and own.is_file()):
        return own.read_text(encoding="utf-8")
    return regular.read(Path(path), 4 * yaml_text.LONGEST).decode()


def dump_yaml(config: Any) -> str:
    """Return the resolved configuration as YAML, from which `load` makes an equal one."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _override(values: dict[str, Any], text: str) -> None:
    """Set ``section.key=value`` in place; the value is read as YAML."""
    key, sep, value = text.partition("=")
    *sections, leaf = key.strip().split(".")
    if not sep or not leaf:
        raise ConfigError(f"--set {brief(text)} must look like key=value, for instance gen.dim=32")
    if len(sections) > yaml_text.DEEPEST:
        raise ConfigError(f"--set {brief(text)}: sections of sections of sections; there are none")
    for name in sections:
        if values.get(name) is None:  # absent, or a YAML section without keys
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {brief(text)}: {name[:80]} is a value, not a section")
    try:
        values[leaf] = yaml_text.parse(value)
    except ConfigError as error:
        raise ConfigError(f"--set {brief(text)}: {error}") from error


def reference() -> str:
    """Return the table of keys in docs/configuration.md, generated from the dataclasses."""
    rows: dict[str, str] = {}

    def walk(cls: type, prefix: str) -> None:
        hints = get_type_hints(cls)
        for item in fields(cls):
            if dataclasses.is_dataclass(item.default_factory):
                walk(item.default_factory, f"{prefix}{item.name}.")
                continue
            doc = item.metadata["doc"]
            if choices := choices_of(hints[item.name]):
                doc += f" ({', '.join(choices)})"
            default = "" if item.default is None else str(item.default)
            if isinstance(item.default, bool):
                default = default.lower()
            rows.setdefault(f"{prefix}{item.name}", f"{default} | {doc}")

    walk(Config, "")
    walk(MunitConfig, "")  # adds its own
    head = ["| key | default | meaning |", "| --- | --- | --- |"]
    return "\n".join(head + [f"| `{key}` | {row} |" for key, row in rows.items()])
