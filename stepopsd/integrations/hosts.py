"""What an adapter relies on in its host, written down and compared with what is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a host's report, see ``stepopsd doctor``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


class HostMoved(ImportError):
    """The installed host is not the one that the adapter was written for; the message says where they differ."""


@dataclass(frozen=True, slots=True)
class Relied:
    """One thing of a host that an adapter calls, overrides or reads.

    Attributes:
        place: ``module:qualified.name``.
        parameters: Names of its parameters that we give or take, in the host's order; of a class: of its constructor,
            unless ``members`` are given.
        called: Whether we call it, so that further parameters need defaults, or are called ourselves, so that every
            parameter must be one that we know.
        members: Attributes or fields that must be there.
    """

    place: str
    parameters: tuple[str, ...] = ()
    called: bool = True
    members: tuple[str, ...] = ()


def installed(module: str) -> bool:
    """Whether a top-level module is there; imports nothing."""
    return importlib.util.find_spec(module) is not None


def version_of(distribution: str) -> str:
    """The installed version, or ``unknown version``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def differences(relied: Sequence[Relied]) -> list[str]:
    """One sentence for each place where the host differs, with what was expected and what was found.

    Example:
        >>> differences([Relied("json:dumps", ("obj",))])
        []
        >>> differences([Relied("json:dumps", ("value",))])
        ['json:dumps: expected the parameters (value), found (obj, skipkeys, ensure_ascii, check_circular, \
allow_nan, cls, indent, separators, default, sort_keys, **kw)']
    """
    return [problem for item in relied for problem in _differences(item)]


def check_host(distribution: str, relied: Sequence[Relied], *, tested: str) -> None:
    """Compare an installed host with what is relied on.

    Args:
        distribution: Name of the host's package.
        relied: See ``Relied``.
        tested: Versions that the adapter was tested with, for the message.

    Raises:
        HostMoved: Something differs; the message names host, version, function, expected and found.
    """
    found = differences(relied)
    if found:
        lines = "\n  ".join(found)
        raise HostMoved(
            f"{distribution} {version_of(distribution)} is not what stepopsd's adapter relies on "
            f"(tested: {tested}):\n  {lines}"
        )


def resolve(place: str) -> Any:
    """The object at ``module:qualified.name``.

    Raises:
        ImportError: The module cannot be imported.
        AttributeError: It has no such name.
    """
    module, _, name = place.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        found = getattr(found, part)
    return found


def _differences(item: Relied) -> list[str]:
    try:
        found = resolve(item.place)
    except (ImportError, AttributeError) as error:
        return [f"{item.place}: expected to be there, found {type(error).__name__}: {error}"]
    lacking = [name for name in item.members if name not in _members(found)]
    problems = []
    if lacking:
        problems.append(f"{item.place}: expected {', '.join(lacking)}, found {', '.join(sorted(_members(found)))}")
    if item.parameters:
        problems += _signature(item, found)
    return problems


def _members(found: Any) -> set[str]:
    fields = getattr(found, "model_fields", None) or getattr(found, "__dataclass_fields__", None) or {}
    annotated = {name for base in getattr(found, "__mro__", ()) for name in inspect.get_annotations(base)}
    return set(fields) | annotated | {name for name in dir(found) if not name.startswith("__")}


def _signature(item: Relied, found: Any) -> list[str]:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError) as error:
        return [f"{item.place}: expected the parameters ({', '.join(item.parameters)}), found no signature: {error}"]
    parameters = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = [p.name for p in parameters]
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if item.called:
        missing = [name for name in item.parameters if name not in names and not any_keyword]
        surplus = [p.name for p in parameters if p.default is p.empty and p.name not in item.parameters]
    else:
        missing = [name for name in item.parameters if name not in names]
        surplus = [name for name in names if name not in item.parameters]
    ordered = [name for name in names if name in item.parameters] == [n for n in item.parameters if n in names]
    if missing or surplus or not ordered:
        shown = ", ".join(_shown(p) for p in signature.parameters.values())
        return [f"{item.place}: expected the parameters ({', '.join(item.parameters)}), found ({shown})"]
    return []


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    return f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
