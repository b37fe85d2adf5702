"""Search-QA as a chat: one self-contained prompt per call, with the last searches and what they brought."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from stepopsd.envs.chat import Reply, task_from
from stepopsd.envs.prompts import Style
from stepopsd.envs.searchqa.env import SearchQAEnv, SearchRules
from stepopsd.envs.searchqa.protocol import SearchPrompting
from stepopsd.envs.searchqa.scoring import Metric
from stepopsd.retrieval import Retriever, open_retriever


class SearchChat:
    """See ``stepopsd.envs.chat.ChatEpisode``.

    Args:
        retriever: ``bundled`` for the closed world's passages; else what ``open_retriever`` takes, e.g. the address of
            a Search-R1 server. Opened once per process.
        max_searches, final_answer_turn, top_k, metric: See ``SearchRules``.
        window: Past steps in a prompt.
        think: Ask for reasoning.
        style: Wording, see ``SearchPrompting``.

    Raises:
        FileNotFoundError, ValueError, ImportError, RetrieverError: See ``open_retriever``.
    """

    is_parallel = True

    def __init__(
        self, *, retriever: str, max_searches: int = 4, final_answer_turn: bool = True, top_k: int = 3,
        metric: Metric = "em", window: int = 4, think: bool = True, style: Style = "full",
    ) -> None:  # fmt: skip
        rules = SearchRules(
            max_searches=max_searches, final_answer_turn=final_answer_turn, top_k=top_k, metric=metric
        )
        self.max_turns, self._window = rules.max_turns, window
        self._prompting = SearchPrompting(window=window, think=think, style=style)
        self._env = SearchQAEnv(_opened(retriever), rules)
        self._steps: list[tuple[str, str]] = []

    def open(self, task: Mapping[str, Any], seed: int) -> str:
        self._steps = []
        self._env.reset(task_from(task), seed)
        return self._prompting.opening(self._env.goal)

    def respond(self, response: str) -> Reply:
        parsed = self._prompting.parse(response)
        result = self._env.step(parsed.action)
        self._steps.append((parsed.action, result.observation.text))
        shown = self._steps[-self._window :] if self._window else []
        message = self._prompting.turn(self._env.goal, shown, len(self._steps) - len(shown) + 1)
        # The same names for every question, or a host could not average them; not every question knows its support.
        known = (name for name, value in result.info.items() if isinstance(value, (int, float)))
        facts = {name: float(result.info[name]) for name in known if name != "support_recall"}
        return Reply(
            "" if result.done else message, result.reward, result.done, result.success, parsed.is_valid, parsed.action,
            parsed.char_span, facts,
        )  # fmt: skip

    def close(self) -> None:
        """The retriever is everybody's and stays open; the next ``open`` starts anew."""


@lru_cache(maxsize=4)
def _opened(spec: str) -> Retriever:
    if spec == "bundled":
        from stepopsd.envs.searchqa.world import bundled_passages

        return open_retriever(bundled_passages())
    return open_retriever(spec)
