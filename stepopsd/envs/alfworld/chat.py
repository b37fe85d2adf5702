"""ALFWorld as a chat: one self-contained prompt per step, with a window of past steps (verl-agent's protocol)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepopsd.envs import prompts
from stepopsd.envs.alfworld.env import AlfworldEnv
from stepopsd.envs.chat import Reply, task_from


class AlfworldChat:
    """See ``stepopsd.envs.chat.ChatEpisode``. A task without a source is one of the bundled games, by its id.

    Args:
        max_turns: Steps of an episode.
        window: Past steps in a prompt.
        think: Ask for reasoning, and demand it in the format check.
        style: Wording, see ``envs.prompts``.

    Raises:
        ImportError: The engine is not installed.
        ValueError: ``max_turns`` or ``window`` out of range.
    """

    is_parallel = False  # the engine keeps state of its own in the process

    def __init__(
        self, *, max_turns: int = 50, window: int = 2, think: bool = True, style: prompts.Style = "full"
    ) -> None:
        for name, value, low in (("max_turns", max_turns, 1), ("window", window, 0)):
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        self.max_turns, self._window, self._think, self._style = max_turns, window, think, style
        self._env = AlfworldEnv()
        self._past: list[tuple[str, str]] = []

    def open(self, task: Mapping[str, Any], seed: int) -> str:
        given = task_from(task)
        if not given.source:
            from stepopsd.envs.games.bundle import bundled_tasks

            # Every node unpacks the bundled games into a cache of its own, so their paths do not travel.
            given = next(found for found in bundled_tasks(given.split) if found.task_id == given.task_id)
        self._past = []
        self._shown = self._env.reset(given, seed)
        return self._message()

    def respond(self, response: str) -> Reply:
        parsed = prompts.parse_action(response, think=self._think)
        result = self._env.step(parsed.action)
        self._past.append((self._shown.text, parsed.action))
        self._shown = result.observation
        message = "" if result.done else self._message()
        return Reply(
            message, result.reward, result.done, result.success, parsed.is_valid, parsed.action, parsed.char_span
        )

    def close(self) -> None:
        self._env.close()

    def _message(self) -> str:
        return prompts.turn_prompt(
            self._env.goal, self._past, self._shown, len(self._past), window=self._window, think=self._think,
            style=self._style,
        )  # fmt: skip
