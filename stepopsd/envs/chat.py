"""An environment as a chat, for other people's rollouts: a prompt that stands on its own out, a response in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from stepopsd.envs.base import Task


@dataclass(frozen=True, slots=True)
class Reply:
    """What a response led to.

    Attributes:
        message: The next user message; empty when the episode is over.
        reward: Of this step.
        is_over, success: Of the episode.
        is_valid: The response kept the format.
        action: What was played.
        char_span: Half-open character range of the action in the response; None without one.
        facts: Numbers worth logging, the latest of each name counts.
    """

    message: str
    reward: float
    is_over: bool
    success: bool
    is_valid: bool
    action: str
    char_span: tuple[int, int] | None
    facts: dict[str, float] = field(default_factory=dict)


class ChatEpisode(Protocol):
    """One episode: ``open``, then ``respond`` until it is over or the caller stops after ``max_turns``.

    Attributes:
        max_turns: Model calls of an episode.
        is_parallel: Whether several may run in several threads of one process.
    """

    max_turns: int
    is_parallel: bool

    def open(self, task: Mapping[str, Any], seed: int) -> str:
        """The first user message; ``task`` holds the fields of a ``Task``."""
        ...

    def respond(self, response: str) -> Reply:
        """Play the action inside a response."""
        ...

    def close(self) -> None:
        """The episode is over for the caller."""
        ...


def task_from(fields: Mapping[str, Any]) -> Task:
    """A ``Task`` from a mapping of its fields.

    Raises:
        ValueError: A missing or unknown field.

    Example:
        >>> task_from({"task_id": "a", "env": "e", "kind": "k", "split": "s", "source": ""}).env
        'e'
    """
    known = ("task_id", "env", "kind", "split", "source")
    if sorted(fields) != sorted(known):
        raise ValueError(f"a task has the fields {', '.join(known)}, got {', '.join(sorted(fields)) or 'none'}")
    return Task(**{name: str(fields[name]) for name in known})
