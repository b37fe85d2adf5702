"""The real ALFWorld text engine: games on disk, the engine with its repeated work memoised, the environment."""

from __future__ import annotations

from stepopsd.envs.alfworld.engine import Engine, EngineState
from stepopsd.envs.alfworld.env import AlfworldEnv, goal_of
from stepopsd.envs.alfworld.games import TASK_TYPES, list_tasks, read_game, walkthrough

__all__ = [
    "TASK_TYPES",
    "AlfworldEnv",
    "Engine",
    "EngineState",
    "goal_of",
    "list_tasks",
    "read_game",
    "walkthrough",
]
