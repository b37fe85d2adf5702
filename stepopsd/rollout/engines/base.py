"""What the rollout loop asks of a sampler: token ids in, sampled ids and their log-probs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation.

    Attributes:
        ids: Exactly the sampled ids, with the stop id when it was sampled.
        logprobs: fp32 log-prob of each id under the model at the sampling temperature (at temperature 1 for greedy
            calls), same length as ``ids``.
        finish: ``stop`` when the last id is a stop id, else ``length``.
    """

    ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a call samples.

    Attributes:
        max_new_tokens: Longest completion, >= 1.
        temperature: > 0 samples from softmax(logits / temperature); 0 takes the most likely token.
        stop_ids: Sampling one of these ends a completion.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or positive and finite, got {self.temperature}")


class Session(Protocol):
    """Growing contexts that keep what the engine computed for them; one policy version, so never across updates."""

    def generate(
        self,
        contexts: Mapping[int, Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Mapping[int, int],
        budgets: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        """Continue each context; what it shares with the key's previous context is not computed again.

        Args:
            contexts: Conversation key -> the whole context.
            sampling: Shared by the call.
            seeds: Conversation key -> 64-bit seed of this call's noise.
            budgets: Conversation key -> longest completion, >= 1, where it is shorter than ``sampling.max_new_tokens``.

        Raises:
            ValueError: A context is empty or too long for the model.
        """
        ...

    def drop(self, keys: Sequence[int]) -> None:
        """Forget these conversations; unknown keys are ignored."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """A sampler of one policy.

    Attributes:
        max_context: Positions that a context and its completion may take together.
    """

    max_context: int

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int]
    ) -> list[Completion]:
        """Sample one completion per prompt, in order; nothing is kept afterwards."""
        if len(prompts) != len(seeds):
            raise ValueError(f"seeds must match prompts one to one, got {len(seeds)} for {len(prompts)}")
        with self.session() as session:
            done = session.generate(dict(enumerate(prompts)), sampling, seeds=dict(enumerate(seeds)))
        return [done[i] for i in range(len(prompts))]

    def session(self) -> Session:
        """Open a session (a context manager) for conversations that grow."""
        ...

    def close(self) -> None:
        """Give back what the engine holds beyond the model; it can be used no more."""
        ...


def call_seed(*parts: int | str) -> int:
    """A 64-bit seed from the coordinates of a model call; the same parts give the same seed everywhere.

    Example:
        >>> call_seed(0, "task", 3, 1) == call_seed(0, "task", 3, 1)
        True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
