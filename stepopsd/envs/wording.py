"""One choice of prompt wording, bound together so that a rollout needs to know nothing about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepopsd.envs import prompts
from stepopsd.envs.base import Observation


@dataclass(frozen=True, slots=True)
class Wording:
    """The prompts of ``stepopsd.envs.prompts`` with their options fixed.

    Attributes:
        window: Past steps shown in a windowed prompt.
        think: Ask for, and demand, reasoning in <think></think>.
        style: ``full`` or ``compact``.
    """

    window: int
    think: bool
    style: prompts.Style

    def turn_prompt(self, goal: str, observation: Observation, past: Sequence[tuple[str, str]]) -> str:
        """User message of one windowed call; ``past`` has (observation text, action) of every earlier step."""
        return prompts.turn_prompt(
            goal, past, observation, len(past), window=self.window, think=self.think, style=self.style
        )

    def dialogue_opening(self, goal: str, observation: Observation) -> str:
        """First user message of a dialogue."""
        return prompts.dialogue_opening(goal, observation, think=self.think, style=self.style)

    def dialogue_followup(self, observation: Observation) -> str:
        """User message that reports what an action led to."""
        return prompts.dialogue_followup(observation, think=self.think, style=self.style)

    def parse_action(self, response: str) -> prompts.ParsedAction:
        """Read a response."""
        return prompts.parse_action(response, think=self.think)
