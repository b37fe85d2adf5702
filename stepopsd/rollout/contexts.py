"""What the model sees before each call: a windowed prompt per turn, or one growing dialogue per episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stepopsd.envs import prompts
from stepopsd.envs.base import Observation
from stepopsd.text.chat import ChatFormat


@dataclass(frozen=True, slots=True)
class Prompting:
    """The words around an environment (``envs.prompts``) with their settings bound.

    Attributes:
        window: Past steps shown in a turn prompt.
        think: Ask for reasoning, and demand it in the format check.
        style: Wording.
        think_given: The prompt already ends with a think block (Qwen3 without thinking), so that none is demanded.
    """

    window: int
    think: bool
    style: prompts.Style = "full"
    think_given: bool = False

    def turn(self, goal: str, history: Sequence[tuple[str, str]], observation: Observation) -> str:
        return prompts.turn_prompt(
            goal, history, observation, len(history), window=self.window, think=self.think, style=self.style
        )

    def opening(self, goal: str, observation: Observation) -> str:
        return prompts.dialogue_opening(goal, observation, think=self.think, style=self.style)

    def followup(self, observation: Observation) -> str:
        return prompts.dialogue_followup(observation, think=self.think, style=self.style)

    def parse(self, response: str) -> prompts.ParsedAction:
        return prompts.parse_action(response, think=self.think and not self.think_given)


class Parser(Protocol):
    """The words around an environment, as far as the rollout loop needs them."""

    def parse(self, response: str) -> prompts.ParsedAction:
        """Read the action out of a response."""
        ...


class Conversation(Protocol):
    """One episode as the model sees it.

    Attributes:
        prompt_ids: The whole context of the next call.
        left_out: Parts of observations that the context had no room for.
    """

    prompt_ids: list[int]
    left_out: int

    def advance(self, response_ids: list[int], action: str, observation: Observation) -> None:
        """Take in what was sampled, what was played and what came of it."""
        ...


class ContextPolicy(Protocol):
    """How episodes become model calls.

    Attributes:
        name: Stored with every trajectory: ``turn`` or ``dialogue``.
    """

    name: str
    chat: ChatFormat

    @property
    def prompting(self) -> Parser: ...

    def open(self, goal: str, observation: Observation) -> Conversation:
        """Start an episode."""
        ...


class TurnContext:
    """Each call sees one user message with the last steps in it; each call is a training row.

    Source: verl-agent's step-wise context.
    """

    name = "turn"

    def __init__(self, chat: ChatFormat, prompting: Prompting) -> None:
        self.chat, self.prompting = chat, prompting

    def open(self, goal: str, observation: Observation) -> TurnConversation:
        return TurnConversation(self, goal, observation)


class TurnConversation:
    """See ``TurnContext``."""

    left_out = 0

    def __init__(self, context: TurnContext, goal: str, observation: Observation) -> None:
        self._context, self._goal = context, goal
        self._past: list[tuple[str, str]] = []
        self._show(observation)

    def advance(self, response_ids: list[int], action: str, observation: Observation) -> None:
        self._past.append((self._shown.text, action))
        self._show(observation)

    def _show(self, observation: Observation) -> None:
        self._shown = observation
        message = self._context.prompting.turn(self._goal, self._past, observation)
        self.prompt_ids = self._context.chat.opening(message)


class DialogueContext:
    """Each call sees everything so far, as the ids that were sampled and shown; an episode is one training row."""

    name = "dialogue"

    def __init__(self, chat: ChatFormat, prompting: Prompting) -> None:
        self.chat, self.prompting = chat, prompting

    def open(self, goal: str, observation: Observation) -> DialogueConversation:
        return DialogueConversation(self, goal, observation)


class DialogueConversation:
    """See ``DialogueContext``."""

    left_out = 0

    def __init__(self, context: DialogueContext, goal: str, observation: Observation) -> None:
        self._context = context
        self.prompt_ids = context.chat.opening(context.prompting.opening(goal, observation))

    def advance(self, response_ids: list[int], action: str, observation: Observation) -> None:
        followup = self._context.chat.followup(self._context.prompting.followup(observation), response_ids)
        self.prompt_ids = [*self.prompt_ids, *response_ids, *followup]
