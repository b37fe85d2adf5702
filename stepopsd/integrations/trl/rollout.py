"""Text environments as TRL's ``rollout_func``: whole episodes in one row, ids in and ids out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stepopsd.text.chat import ChatFormat


@dataclass(frozen=True, slots=True)
class TextStep:
    """What a response led to.

    Attributes:
        observation: The next user message; not shown after the last step.
        reward: What the environment paid for this step.
        done: The episode is over.
        success: It was won.
        action: What was understood, for the peer's block; empty: nothing.
    """

    observation: str
    reward: float = 0.0
    done: bool = False
    success: bool = False
    action: str = ""


class TextEnvironment(Protocol):
    """One episode at a time."""

    def reset(self, prompt: Any) -> str:
        """Start the episode of a dataset row's ``prompt``; returns the first user message.

        Members of a group get the same prompt and must get the same episode.
        """
        ...

    def step(self, response: str) -> TextStep:
        """Play a response."""
        ...


@dataclass(slots=True)
class _Episode:
    environment: TextEnvironment
    prompt_ids: list[int]
    seen: str
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    success: bool = False
    pending: list[int] = field(default_factory=list)  # the next user message, kept only if it is answered


class TextEpisodes:
    """Plays whole episodes with TRL's own generation, whatever its backend: pass it as ``rollout_func``.

    What was sampled is never tokenised again; user messages are tokenised once, with the template's own frame. Episodes
    of a batch go on together, and those that are over wait for nobody's tokens.

    Args:
        make: Makes an environment; one is made for each row that is played at the same time, and used again.
        max_turns: Responses per episode.
        max_turn_tokens: Tokens per response; TRL's ``max_completion_length`` bounds the whole episode.
        enable_thinking: See ``text.chat.ChatFormat``.

    Returns, per call, TRL's required fields, ``env_mask`` and, for reward functions and the trainer, ``episode_reward``
    (sum of rewards), ``success``, ``actions``, ``turn_rewards`` and ``turn_states`` (what was seen before each turn).

    Raises:
        ValueError: A limit below 1.

    Example:
        >>> episodes = TextEpisodes(MyGame, max_turns=8, max_turn_tokens=64)         # doctest: +SKIP
        >>> StepOPSDGRPOTrainer(..., rollout_func=episodes, reward_funcs=episode_reward)   # doctest: +SKIP
    """

    def __init__(
        self, make: Callable[[], TextEnvironment], *, max_turns: int, max_turn_tokens: int,
        enable_thinking: bool | None = None,
    ) -> None:
        for name, value in (("max_turns", max_turns), ("max_turn_tokens", max_turn_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.make, self.max_turns, self.max_turn_tokens = make, max_turns, max_turn_tokens
        self.enable_thinking = enable_thinking
        self._pool: list[TextEnvironment] = []
        self._chat: ChatFormat | None = None

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        if self._chat is None:
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
            self._chat = ChatFormat(tokenizer, enable_thinking=self.enable_thinking)
        self._pool += [self.make() for _ in range(len(prompts) - len(self._pool))]
        episodes = []
        for environment, prompt in zip(self._pool, prompts, strict=False):
            seen = environment.reset(prompt)
            episodes.append(_Episode(environment, self._chat.opening(seen), seen))
        running = list(episodes)
        for turn in range(self.max_turns):
            running = [e for e in running if self._fits(e, trainer.max_completion_length)]
            if not running:
                break
            self._turn(running, trainer)
            running = [e for e in running if e.pending and turn + 1 < self.max_turns]
        return {
            "prompt_ids": [e.prompt_ids for e in episodes],
            "completion_ids": [e.ids for e in episodes],
            "logprobs": None if any(e.logprobs is None for e in episodes) else [e.logprobs for e in episodes],
            "env_mask": [e.mask for e in episodes],
            "episode_reward": [sum(e.rewards) for e in episodes],
            "success": [e.success for e in episodes],
            "actions": [e.actions for e in episodes],
            "turn_rewards": [e.rewards for e in episodes],
            "turn_states": [e.states for e in episodes],
        }

    def _fits(self, episode: _Episode, limit: int) -> bool:
        """Whether there is room for the pending message and at least one token of an answer to it."""
        return len(episode.ids) + len(episode.pending) < limit

    def _turn(self, running: list[_Episode], trainer: Any) -> None:
        assert self._chat is not None
        for e in running:
            e.ids += e.pending
            e.mask += [0] * len(e.pending)
            if e.logprobs is not None:
                e.logprobs += [0.0] * len(e.pending)
        sampled, logprobs = generate(trainer, [e.prompt_ids + e.ids for e in running], self.max_turn_tokens)
        for i, e in enumerate(running):
            ids = list(sampled[i])[: min(self.max_turn_tokens, trainer.max_completion_length - len(e.ids))]
            e.states.append(e.seen)
            e.ids += ids
            e.mask += [1] * len(ids)
            if logprobs is None:
                e.logprobs = None
            elif e.logprobs is not None:
                e.logprobs += list(logprobs[i])[: len(ids)]
            step = e.environment.step(self._chat.text(ids))
            e.rewards.append(float(step.reward))
            e.actions += [step.action] if step.action else []
            e.success, e.seen = step.success, step.observation
            e.pending = [] if step.done else self._chat.followup(step.observation, ids)


def generate(trainer: Any, prompt_ids: list[list[int]], max_tokens: int) -> tuple[list[list[int]], Any]:
    """One sample per prompt with the trainer's own backend; log-probs are None where the backend keeps none."""
    known = inspect.signature(trainer._generate_single_turn).parameters
    given: dict[str, Any] = {"prompt_ids": prompt_ids, "images": None, "multimodal_fields": {}, "num_generations": 1}
    holders = [(trainer.generation_config, "max_new_tokens")] if hasattr(trainer, "generation_config") else []
    if (vllm := getattr(trainer, "vllm_generation", None)) is not None and hasattr(vllm, "max_completion_length"):
        holders.append((vllm, "max_completion_length"))
    before = [getattr(holder, name) for holder, name in holders]
    try:
        for holder, name in holders:
            setattr(holder, name, max_tokens)
        found = trainer._generate_single_turn(**{name: value for name, value in given.items() if name in known})
    finally:
        for (holder, name), value in zip(holders, before, strict=True):
            setattr(holder, name, value)
    return found[0], found[1]
