"""What ends an episode besides success: steps, context length, broken or slow environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepopsd.envs.base import EnvError, EnvInfraError, EnvTimeLimit
from stepopsd.envs.replay import ReplayMismatch
from stepopsd.rollout.engines.base import Engine


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one episode.

    Attributes:
        max_steps: Actions per episode, >= 1.
        max_prompt_tokens: Longest context of a model call, >= 1. A longer one ends the episode with
            ``context_limit``; nothing is ever cut.
        max_response_tokens: Longest model turn, >= 1.
    """

    max_steps: int
    max_prompt_tokens: int
    max_response_tokens: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def fits(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the model may be called with this context."""
        return len(prompt_ids) <= self.max_prompt_tokens

    def check_engine(self, engine: Engine) -> None:
        """Raises ValueError when the longest allowed call does not fit the model."""
        longest = self.max_prompt_tokens + self.max_response_tokens
        if longest > engine.max_context:
            raise ValueError(
                f"max_prompt_tokens={self.max_prompt_tokens} plus max_response_tokens={self.max_response_tokens} must "
                f"not exceed the model's {engine.max_context} positions"
            )


def status_of(error: EnvError) -> str:
    """The trajectory status that an environment failure leads to."""
    if isinstance(error, ReplayMismatch):
        return "replay_mismatch"
    if isinstance(error, EnvInfraError):
        return "infra_error"
    return "time_limit" if isinstance(error, EnvTimeLimit) else "env_error"
