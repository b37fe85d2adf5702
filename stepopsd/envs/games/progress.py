"""A progress bar where there is a terminal to see it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TypeVar

_T = TypeVar("_T")


def progress(items: Iterable[_T], total: int, label: str) -> Iterator[_T]:
    """The items as they come, counted on standard error; silent without a terminal or without rich."""
    if find_spec("rich") is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=label, total=total, console=Console(stderr=True))
