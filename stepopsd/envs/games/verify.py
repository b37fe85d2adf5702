"""Checking games on the real engine: the stored walkthrough wins, and so does the expert."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from stepopsd.envs.alfworld import AlfworldEnv, walkthrough
from stepopsd.envs.base import Task
from stepopsd.envs.games.expert import HandExpert

STEP_LIMIT = 50
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the engine said about a game.

    Attributes:
        walkthrough_steps: Steps after which the stored walkthrough won; None if it did not.
        expert_steps: Steps after which the expert won; None if it did not, or was not asked.
        problem: Why the game could not be loaded or played; empty otherwise.
    """

    walkthrough_steps: int | None
    expert_steps: int | None
    problem: str = ""


def play_expert(env: AlfworldEnv, task: Task, *, limit: int = STEP_LIMIT) -> int | None:
    """Let the expert play a game; returns the number of steps it needed, None if it did not win in ``limit``."""
    observation = env.reset(task, 0)
    expert = HandExpert(env.goal)
    for step in range(1, limit + 1):
        result = env.step(expert.act(observation))
        if result.done:
            return step
        observation = result.observation
    return None


def play_walkthrough(env: AlfworldEnv, task: Task) -> int | None:
    """Replay a game's walkthrough; returns the step that won, None if none did."""
    env.reset(task, 0)
    for step, action in enumerate(walkthrough(task.source), start=1):
        if env.step(action).done:
            return step
    return None


def check_game(env: AlfworldEnv, task: Task, *, expert_limit: int | None = STEP_LIMIT) -> Verdict:
    """Play a game by its walkthrough, and by the expert unless ``expert_limit`` is None; never raises for a bad game.

    Example:
        >>> check_game(AlfworldEnv(), task).walkthrough_steps
        4
    """
    try:
        steps = play_walkthrough(env, task)
        expert = None if expert_limit is None else play_expert(env, task, limit=expert_limit)
    except (OSError, ValueError) as error:
        return Verdict(None, None, str(error))
    return Verdict(steps, expert)


@contextmanager
def on_engines(
    function: Callable[[AlfworldEnv, Task], _R], workers: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[_R]]]:
    """A map over tasks, in order, in worker processes that keep one engine each.

    Args:
        function: Called with an engine and a task; has to be importable where a worker starts.
        workers: Processes, at most one per core; 0 or 1 for this one alone.

    Raises:
        ValueError: ``workers`` is negative.

    Example:
        >>> with on_engines(play_expert, workers=2) as run:
        ...     steps = list(run(tasks))
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    call, workers = partial(_with_engine, function), min(workers, os.cpu_count() or 1)
    if workers < 2:
        yield partial(map, call)
        return
    pool = multiprocessing.get_context("spawn").Pool(workers)
    try:
        yield partial(pool.imap, call)
    finally:
        pool.terminate()
        pool.join()


def checker(
    workers: int, *, expert_limit: int | None = STEP_LIMIT
) -> AbstractContextManager[Callable[[Iterable[Task]], Iterator[Verdict]]]:
    """``check_game`` for many tasks: ``on_engines`` with its step limit for the expert.

    Example:
        >>> with checker(workers=2) as check:
        ...     verdicts = list(check(tasks))
    """
    return on_engines(partial(check_game, expert_limit=expert_limit), workers)


_engine: AlfworldEnv | None = None


def _with_engine(function: Callable[[AlfworldEnv, Task], _R], task: Task) -> _R:
    global _engine
    if _engine is None:
        _engine = AlfworldEnv()
    return function(_engine, task)
