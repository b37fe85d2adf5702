"""Configuration from several files, one over the other, that remembers where every value came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stepopsd.train.config import RunConfig
from stepopsd.train.config_io import differences, field_kinds, from_tree, to_tree, unknown_key

EXTENDS = "extends"
DEFAULT = "default"
COMMAND_LINE = "command line"
_COLUMN = 56


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration and the source of its values.

    Attributes:
        sources: Dotted key -> file, with the comment beside the value; keys that no file sets are absent.
    """

    config: RunConfig
    sources: Mapping[str, str]

    def over(self, config: RunConfig, source: str = COMMAND_LINE) -> Resolved:
        """``config`` as it became of this one, with ``source`` for every value that changed."""
        changed = differences(self.config, config)
        return Resolved(config, {**self.sources, **dict.fromkeys(changed, source)})


def read_layers(files: Sequence[Path], *, presets: Path | None = None) -> Resolved:
    """Read YAML files; a later file goes over the earlier ones, key by key, lists as a whole.

    A file may begin with ``extends: [common.yaml, ...]``, paths relative to itself: these come under it. A comment
    behind a value is kept as the reason for it.

    Args:
        files: In order, weakest first; none gives the defaults.
        presets: Files below it are called by their path in it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not YAML or not a mapping, an unknown key, a file that extends itself, or a value of the wrong type
            or range; the message names file and key.
    """
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for file in files:
        for layer in _with_bases(file, ()):
            content, notes = _read(layer)
            content.pop(EXTENDS, None)
            _check_keys(RunConfig, content, "", layer)
            merge(tree, content)
            name = _name(layer, presets)
            sources |= {key: f"{name}: {note}" if note else name for key, note in notes.items()}
    return Resolved(from_tree(RunConfig, tree), sources)


def dump_with_sources(resolved: Resolved) -> str:
    """The configuration as YAML, the source of each value in a comment beside it; ``load_config`` reads it back."""
    return "\n".join(_lines(to_tree(resolved.config), resolved.sources, "", 0)) + "\n"


def _lines(tree: Mapping[str, Any], sources: Mapping[str, str], prefix: str, depth: int) -> Iterator[str]:
    for key, value in tree.items():
        path, indent = prefix + key, "  " * depth
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, sources, f"{path}.", depth + 1)
        else:
            text = yaml.safe_dump([value], default_flow_style=True, width=1 << 20).strip()[1:-1]
            yield f"{indent}{key}: {text}".ljust(_COLUMN) + f"  # {sources.get(path, DEFAULT)}"


def _with_bases(file: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files that ``file`` extends, weakest first, then itself."""
    if file.resolve() in above:
        raise ValueError(f"{file}: a configuration file must not extend itself")
    tree, _ = _read(file)
    bases = tree.get(EXTENDS) or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{file}: {EXTENDS} must be a list of files, got {bases!r}")
    for base in bases:
        yield from _with_bases(file.parent / base, (*above, file.resolve()))
    yield file


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's tree, and dotted key -> comment beside its value (empty without one)."""
    if not file.is_file():
        raise FileNotFoundError(f"config: no such file: {file}")
    text = file.read_text(encoding="utf-8")
    try:
        tree, node = yaml.safe_load(text), yaml.compose(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: config must be a mapping, got {type(tree).__name__}")
    return tree, dict(_notes(node, text.splitlines(), ""))


def _notes(node: Any, lines: Sequence[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _notes(value, lines, f"{path}.")
        elif path != EXTENDS:
            one_line = value.start_mark.line == value.end_mark.line
            behind = lines[value.end_mark.line][value.end_mark.column :] if one_line else ""
            yield path, behind.partition(" # ")[2].strip()


def _check_keys(cls: Any, tree: Mapping[Any, Any], prefix: str, file: Path) -> None:
    """Raise ValueError naming file and key for a key that ``cls`` does not have; values are checked once merged."""
    kinds = field_kinds(cls)
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key not in kinds:
            raise ValueError(f"{file}: {unknown_key(path, str(key), kinds)}")
        if dataclasses.is_dataclass(kinds[key]) and isinstance(value, Mapping):
            _check_keys(kinds[key], value, f"{path}.", file)


def merge(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Put ``over`` over ``under``, in place: mappings key by key, everything else as a whole."""
    for key, value in over.items():
        if not isinstance(value, Mapping):
            under[key] = value
            continue
        if not isinstance(under.get(key), dict):
            under[key] = {}
        merge(under[key], value)


def _name(file: Path, presets: Path | None) -> str:
    if presets is not None and file.resolve().is_relative_to(presets.resolve()):
        return f"preset {file.resolve().relative_to(presets.resolve()).with_suffix('').as_posix()}"
    return str(file)
