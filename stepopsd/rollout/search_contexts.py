"""What the model sees while it answers with searches: whole passages within a budget, the question always.

Passages that do not fit are left out from the worst one up, the block is closed all the same, and nothing else is
ever shortened. What was sampled stays as it was sampled; passages are context and carry no loss by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepopsd.envs.base import Observation
from stepopsd.envs.searchqa.protocol import SearchObservation, SearchPrompting, information
from stepopsd.text.chat import ChatFormat


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that may be spent.

    Attributes:
        prompt_tokens: Longest context of a model call.
        observation_tokens: Longest block of passages of one search; 0 for no bound of its own.
    """

    prompt_tokens: int
    observation_tokens: int = 0

    def __post_init__(self) -> None:
        for name, low in (("prompt_tokens", 1), ("observation_tokens", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")


class _Base:
    """Settings that both contexts share."""

    def __init__(self, chat: ChatFormat, prompting: SearchPrompting, budget: Budget) -> None:
        self.chat, self.prompting, self.budget = chat, prompting, budget

    def within(self, observation: Observation) -> SearchObservation:
        """The observation with as many of its best passages as one search may show."""
        if not isinstance(observation, SearchObservation):
            raise TypeError(f"a search context needs a SearchObservation, got {type(observation).__name__}")
        kept = observation.passages
        while kept and 0 < self.budget.observation_tokens < self.count(information(kept)):
            kept = kept[:-1]
        return _showing(observation, kept)

    def count(self, text: str) -> int:
        return len(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])


class SearchTurnContext(_Base):
    """Each call sees one user message: the question, the last steps and what they brought; each call is a row.

    Where a prompt is too long, passages go first, those of the oldest step before those of later ones, then whole
    steps from the oldest on. A question that does not fit by itself ends the episode with ``context_limit``.

    Args:
        chat: Chat format.
        prompting: The words.
        budget: ``prompt_tokens`` should be the run's ``Limits.max_prompt_tokens``.

    Source: verl-agent's step-wise context.
    """

    name = "turn"

    def open(self, goal: str, observation: Observation) -> SearchTurnConversation:
        return SearchTurnConversation(self, goal)


class SearchTurnConversation:
    """See ``SearchTurnContext``.

    Attributes:
        left_out: Passages that were retrieved and could not be shown in the newest prompt.
    """

    def __init__(self, context: SearchTurnContext, goal: str) -> None:
        self._context, self._goal = context, goal
        self._steps: list[tuple[str, SearchObservation]] = []
        self._found: list[int] = []
        self.left_out = 0
        self.prompt_ids = self._ids([], 1)

    def advance(self, response_ids: list[int], action: str, observation: Observation) -> None:
        seen = self._context.within(observation)
        self._found.append(len(getattr(observation, "passages", ())))
        self._steps.append((action, seen))
        first = max(0, len(self._steps) - self._context.prompting.window)
        steps = self._steps[first:]
        self.prompt_ids = self._ids(steps, first + 1)
        while len(self.prompt_ids) > self._context.budget.prompt_tokens and steps:
            steps = _shorter(steps)
            first = len(self._steps) - len(steps)
            self.prompt_ids = self._ids(steps, first + 1)
        self.left_out = sum(self._found[first:]) - sum(len(seen.passages) for _, seen in steps)

    def _ids(self, steps: Sequence[tuple[str, SearchObservation]], first: int) -> list[int]:
        shown = [(action, seen.text) for action, seen in steps]
        return self._context.chat.opening(self._context.prompting.turn(self._goal, shown, first))


class SearchDialogueContext(_Base):
    """Each call sees everything so far, as the ids that were sampled and shown; an episode is one row.

    A search's passages are fitted when they arrive, into what the observation and the prompt still allow; ids that a
    call has seen never change.

    Args:
        chat: Chat format.
        prompting: The words.
        budget: ``prompt_tokens`` should be the run's ``Limits.max_prompt_tokens``.

    Source: Search-R1's growing sequence (arXiv 2503.09516), as turns of the chat template.
    """

    name = "dialogue"

    def open(self, goal: str, observation: Observation) -> SearchDialogueConversation:
        return SearchDialogueConversation(self, goal)


class SearchDialogueConversation:
    """See ``SearchDialogueContext``.

    Attributes:
        left_out: Passages that were retrieved and could not be shown, so far.
    """

    def __init__(self, context: SearchDialogueContext, goal: str) -> None:
        self._context = context
        self.left_out = 0
        self.prompt_ids = context.chat.opening(context.prompting.opening(goal))

    def advance(self, response_ids: list[int], action: str, observation: Observation) -> None:
        seen = self._context.within(observation)
        found = len(getattr(observation, "passages", ()))
        before = [*self.prompt_ids, *response_ids]
        while True:
            self.prompt_ids = [*before, *self._followup(seen, response_ids)]
            if len(self.prompt_ids) <= self._context.budget.prompt_tokens or not seen.passages:
                break
            seen = _showing(seen, seen.passages[:-1])
        self.left_out += found - len(seen.passages)

    def _followup(self, seen: SearchObservation, response_ids: list[int]) -> list[int]:
        return self._context.chat.followup(self._context.prompting.followup(seen.text), response_ids)


def _shorter(steps: list[tuple[str, SearchObservation]]) -> list[tuple[str, SearchObservation]]:
    """Without the worst passage of the oldest step that shows any, or without the oldest step."""
    for i, (action, seen) in enumerate(steps):
        if seen.passages:
            return [*steps[:i], (action, _showing(seen, seen.passages[:-1])), *steps[i + 1 :]]
    return steps[1:]


def _showing(observation: SearchObservation, passages: Sequence[str]) -> SearchObservation:
    """The same observation with fewer passages; says so where none is left."""
    if len(passages) == len(observation.passages):
        return observation
    note = observation.note
    if not passages:
        note = " ".join(part for part in ("What was found is too long to show.", note) if part)
    return SearchObservation(information(passages, note), passages=tuple(passages), note=note)
