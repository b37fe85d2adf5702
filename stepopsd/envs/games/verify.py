"""Checking games on the real engine: the stored walkthrough wins, and so does the expert."""

from __future__ import annotations

from dataclasses import dataclass

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
