"""Configuration files: YAML into the frozen tree and back; an unknown key is an error with its full path."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from stepopsd.train.config import RunConfig

T = TypeVar("T")


def load_config(path: str | Path) -> RunConfig:
    """Read a YAML file, with the files that it extends (see ``train.config_layers``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mapping, an unknown key, or a value of the wrong type or range; the message has the key.
    """
    from stepopsd.train.config_layers import read_layers

    return read_layers([Path(path)]).config


def from_tree(cls: type[T], tree: Any, prefix: str = "") -> T:
    """A mapping of plain values -> an instance of the dataclass ``cls``."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{prefix or 'config'} must be a mapping, got {type(tree).__name__}")
    kinds = field_kinds(cls)
    values = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if key not in kinds:
            raise ValueError(unknown_key(path, str(key), kinds))
        values[key] = _convert(kinds[key], value, path)
    return cls(**values)


def field_kinds(cls: Any) -> dict[str, Any]:
    """Type of every field of a configuration class, in order."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def unknown_key(path: str, key: str, known: Collection[str]) -> str:
    """What to say about a key that is none of ``known``; ``path`` is its full name."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
    return f"unknown config key {path}; {hint}"


def _convert(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_tree(typing.cast("type[Any]", kind), value, path)
    origin = get_origin(kind)
    if origin is typing.Literal:
        if value not in get_args(kind):
            raise ValueError(f"{path} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{path} must be a list, got {value!r}")
        return tuple(_convert(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _convert(inner, value, path)
    if kind is float and isinstance(value, str):
        return _number(value, path)  # YAML 1.1 reads 1e-6 as a string
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{path} must be of type {kind.__name__}, got {value!r}")
    return value


def _number(text: str, path: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path} must be a number, got {text!r}") from None


def to_tree(config: Any) -> dict[str, Any]:
    """The configuration as plain YAML values."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_tree(value)
    return list(value) if isinstance(value, tuple) else value


def differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Full keys at which two configurations differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(a):
        mine, theirs, key = getattr(a, f.name), getattr(b, f.name), prefix + f.name
        if dataclasses.is_dataclass(mine):
            found |= differences(mine, theirs, f"{key}.")
        elif mine != theirs:
            found[key] = (mine, theirs)
    return found


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; ``load_config`` reads it back unchanged."""
    return str(yaml.safe_dump(to_tree(config), sort_keys=False))
