"""The rollout plan: what a credit method asks of the rollouts, request by request, and what it trains on in the end.

A plan is a generator. It yields a list of requests, is sent a list of answers, one for each request, and returns a
``Planned``. All prompts of an update share one plan, so that a trainer can run their requests side by side.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Fresh:
    """Sample ``count`` attempts of a prompt from its beginning. Answered by a list of ``Attempt``.

    Attributes:
        prompt: Counted from 0 within the update.
        count: At least 1.
    """

    prompt: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


@dataclass(frozen=True, slots=True)
class Continuation:
    """Sample ``count`` continuations of an attempt from one of its prefixes. Answered by a list of ``Attempt``.

    The list holds fewer, or none, where the environment could not be brought back to that place.

    Attributes:
        row: The parent, ``Attempt.index`` of it.
        cut: Response tokens of the parent to keep: token ids, never text that is tokenised again. 0 keeps none.
        count: Continuations to sample under the ordinary prompt.
        kind: ``reset`` continuations are trained on their suffix, ``branch`` ones only lend their rewards.
        group: Group id of the continuations.
    """

    row: int
    cut: int
    count: int
    kind: Literal["reset", "branch"]
    group: int

    def __post_init__(self) -> None:
        if self.cut < 0 or self.count < 1:
            raise ValueError(f"cut must be at least 0 and count at least 1, got {self.cut} and {self.count}")


@dataclass(frozen=True, slots=True)
class Question:
    """Put a question to the policy in a conversation of its own. Answered by its reply, None where nothing fits.

    Attributes:
        prompt: The prompt that it is about.
        texts: Wordings, the longest first; the first one that the model can hold is asked.
        max_tokens: Longest reply.
        temperature: Of sampling; 0 is greedy.
    """

    prompt: int
    texts: tuple[str, ...]
    max_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an attempt.

    Attributes:
        text: What the policy wrote.
        result: What the environment answered; empty inside a turn.
        end: Response tokens of the attempt up to the end of the step.
    """

    text: str
    result: str
    end: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One episode, as a plan sees it.

    Attributes:
        index: Names it in the update.
        prompt: Which prompt it answers.
        usable: False where the environment broke; such an attempt says nothing and cannot be trained on.
        success: Of the episode.
        problem: The task as the policy saw it.
        steps: In order; empty for an episode without a turn.
        tokens: Response tokens that were sampled for it, those of its parent not counted.
    """

    index: int
    prompt: int
    usable: bool
    success: bool
    problem: str
    steps: tuple[Step, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan comes to.

    Attributes:
        groups: Attempt -> group id, of the attempts to train on.
        metrics: To be logged.
    """

    groups: Mapping[int, int]
    metrics: Mapping[str, Any] = field(default_factory=dict)


Request: TypeAlias = Fresh | Continuation | Question
Plan: TypeAlias = Generator[Sequence[Request], list[Any], Planned]


def plain_plan(prompts: int, group_size: int) -> Plan:
    """``group_size`` attempts of every prompt, all trained on, each prompt a group."""
    answers = yield [Fresh(prompt, group_size) for prompt in range(prompts)]
    return Planned({a.index: a.prompt for attempts in answers for a in attempts if a.usable})
