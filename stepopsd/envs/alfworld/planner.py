"""Copies of the Fast Downward library: small ones, and with the planning input prepared only when a plan is wanted."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stepopsd.envs.alfworld.private import private_copy


class PlannerInput:
    """The second translation of a problem, which only planning reads; stands in for its text until then."""

    def __init__(self, translate: Callable[[], str]) -> None:
        self._translate = translate

    def encode(self, _encoding: str) -> PlannerInput:
        return self

    def content(self) -> bytes:
        return self._translate().encode("utf-8")


class Planner:
    """One loaded copy of the library, which keeps its game in global variables; so every engine has its own."""

    def __init__(self) -> None:
        self._library = _interface().load_lib()
        self._pending: PlannerInput | None = None
        #: State of the loaded game in which nothing has happened yet, for the first reset to take.
        self.untouched_state: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def load_sas_replan(self, planner_input: PlannerInput) -> None:
        self._pending = planner_input

    def replan(self, verbose: bool) -> bool:
        if self._pending is not None:
            self._library.load_sas_replan(self._pending.content())
            self._pending = None
        return bool(self._library.replan(verbose))


@cache
def _interface() -> Any:
    import fast_downward

    interface = private_copy("fast_downward.interface")
    interface.Atom, interface.Operator = fast_downward.Atom, fast_downward.Operator
    interface.shutil = SimpleNamespace(copyfile=_copy_loadable_part)
    return interface


def _copy_loadable_part(source: str, target: str) -> None:
    """Copy a shared object without what follows its loadable segments: 1 MB instead of 33 MB of debug sections.

    The loader reads program headers only; with an engine per slot the difference is gigabytes of temporary files.
    """
    content = Path(source).read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":  # not 64-bit little-endian
        Path(target).write_bytes(content)
        return
    table = struct.unpack_from("<Q", content, 32)[0]
    size, count = struct.unpack_from("<HH", content, 54)
    ends = []
    for index in range(count):
        offset, _, _, length = struct.unpack_from("<QQQQ", content, table + index * size + 8)
        ends.append(offset + length)
    Path(target).write_bytes(content[: max(ends)])
