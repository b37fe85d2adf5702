"""One copy of ALFWorld's text engine: TextWorld's PDDL interpreter under ALFWorld's object names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from stepopsd.envs.alfworld import memo
from stepopsd.envs.alfworld.games import read_game
from stepopsd.envs.install import INSTALL_HINT


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine reports after a reset or a command: its words, all accepted commands (sorted), the outcome."""

    text: str
    commands: tuple[str, ...]
    won: bool


class Engine:
    """Plays one game at a time; loading another game reuses the engine.

    Args:
        memoise: Do repeated work once (see ``memo``); text, commands and outcome are the same without, slower.

    Raises:
        ImportError: TextWorld or ALFWorld is missing.
    """

    def __init__(self, *, memoise: bool = True) -> None:
        self._idle = _idle_interpreters(memoise)
        self._env: Any = self._idle.pop() if self._idle else _new_interpreter(memoise)
        self._loaded: dict[str, Any] | None = None

    def start(self, path: str) -> EngineState:
        """Load a game file and begin; raises FileNotFoundError or ValueError for a missing or broken file."""
        if self._env is None:
            raise RuntimeError("the engine is closed")
        game = read_game(path)
        try:
            with _translator_side_effects_undone():
                if game is not self._loaded:
                    self._loaded = None
                    self._env.load(game)
                    self._loaded = game
                state = self._env.reset()
        # Fast Downward's translator leaves by SystemExit, TextWorld and its parsers by many other exceptions.
        except (Exception, SystemExit) as error:
            raise ValueError(f"{path}: the engine cannot load this game ({type(error).__name__}: {error})") from error
        return _report(state)

    def command(self, text: str) -> EngineState:
        """Give one command; a command that is not accepted now changes nothing."""
        state, _, _ = self._env.step(text)
        return _report(state)

    def plan(self) -> list[str]:
        """Commands that win from the current state, found by Fast Downward; empty when there are none."""
        with _translator_side_effects_undone():
            return list(self._env.unwrapped._pddl_state.replan(self._env._entity_infos))

    def close(self) -> None:
        """Hand the interpreter back for later engines; further calls fail."""
        if self._env is not None:
            self._idle.append(self._env)
        self._env = self._loaded = None


def _report(state: Any) -> EngineState:
    return EngineState(str(state.feedback), tuple(state["admissible_commands"]), bool(state["won"]))


@cache
def _idle_interpreters(memoise: bool) -> list[Any]:
    """Interpreters of closed engines. Copies of Fast Downward share a registry, so unloading one is not safe."""
    return []


def _new_interpreter(memoise: bool) -> Any:
    try:
        with _environment_restored():
            import textworld
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
            from textworld.envs.pddl.pddl import PddlEnv
    except ImportError as error:
        raise ImportError(
            f"the ALFWorld text engine is not installed ({error}): {INSTALL_HINT}"
        ) from error
    pddl_env = memo.memoised_pddl_env() if memoise and memo.supported() else PddlEnv
    return AlfredDemangler(pddl_env(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)


@contextmanager
def _environment_restored() -> Iterator[None]:
    """alfworld sets ALFWORLD_DATA on import, which would make absent official games look present."""
    before = os.environ.get("ALFWORLD_DATA")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("ALFWORLD_DATA", None)


@contextmanager
def _translator_side_effects_undone() -> Iterator[None]:
    """Fast Downward's translator overwrites ``sys.argv`` to pass its own options."""
    argv = sys.argv
    try:
        yield
    finally:
        sys.argv = argv
