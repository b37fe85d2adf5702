"""Checking games on the real engine: the stored walkthrough wins, and so does the expert."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import Pool

from stepopsd.envs.alfworld import AlfworldEnv, walkthrough
from stepopsd.envs.base import Task
from stepopsd.envs.games.expert import HandExpert

STEP_LIMIT = 50


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


class Checker:
    """``check_game`` for many tasks, in order, in worker processes that keep one engine each.

    Args:
        workers: Processes, at most one per core; 0 or 1 for this one alone.
        expert_limit: As for ``check_game``.

    Example:
        >>> with Checker(workers=2) as check:
        ...     verdicts = list(check(tasks))
    """

    def __init__(self, workers: int, *, expert_limit: int | None = STEP_LIMIT) -> None:
        if workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        self._workers = min(workers, os.cpu_count() or 1)
        self._check = partial(_check_in_process, expert_limit=expert_limit)
        self._pool: Pool | None = None

    def __enter__(self) -> Callable[[Iterable[Task]], Iterator[Verdict]]:
        if self._workers < 2:
            return partial(map, self._check)
        self._pool = multiprocessing.get_context("spawn").Pool(self._workers)
        return partial(self._pool.imap, self._check)

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()


_engine: AlfworldEnv | None = None


def _check_in_process(task: Task, expert_limit: int | None) -> Verdict:
    global _engine
    if _engine is None:
        _engine = AlfworldEnv()
    return check_game(_engine, task, expert_limit=expert_limit)
