"""One episode in somebody else's rollout: messages in, sampled ids out, and afterwards the teacher's opinion of them.

Nothing of verl here but the client and tokenizer that it hands over, so that all of it runs anywhere.
"""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stepopsd.integrations.verl.teacher import Scorer
from stepopsd.text.hindsight import BlockWriter, number_actions
from stepopsd.text.spans import decode, token_span

#: Engines that are not safe in several threads play in this one.
ONE_THREAD = ThreadPoolExecutor(1, thread_name_prefix="stepopsd-env")


@dataclass
class PlayedTurn:
    """One model call.

    Attributes:
        prompt_ids, response_ids: As sent and sampled.
        logprobs: Of the response under the sampling policy; None where the server gives none.
        action: What was played.
        span: Half-open token range of the action in the response; None where the response holds none.
        message: What the policy was shown.
        text: Its response.
        facts: Of the request, e.g. the weights' versions.
        teacher: log p of each response token with hindsight, NaN where nobody was asked.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float] | None
    action: str
    span: tuple[int, int] | None
    message: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    teacher: list[float] = field(default_factory=list)


@dataclass
class Played:
    """A whole episode.

    Attributes:
        turns: At least one, unless the first prompt was too long or the server gave up.
        reward: Sum of the environment's rewards.
        status: ``done``, ``turn_limit``, ``context_limit`` or ``aborted``.
    """

    turns: list[PlayedTurn] = field(default_factory=list)
    reward: float = 0.0
    success: bool = False
    status: str = "turn_limit"
    invalid: int = 0
    facts: dict[str, float] = field(default_factory=dict)

    def render(self, how: str) -> str:
        """The episode as a peer is shown it: numbered ``actions``, or every message and response in ``full``."""
        if how == "actions":
            return number_actions([turn.action for turn in self.turns])
        return "\n".join(f"{turn.message}\n{turn.text}" for turn in self.turns)


def load_player(place: str, options: Mapping[str, Any]) -> Any:
    """A ``stepopsd.envs.chat.ChatEpisode`` made from ``module:Class`` and its keyword arguments.

    Raises:
        ValueError: Another form, or no such class; the message has the setting's name.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**options)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"stepopsd.episode.player {place!r}: {error}") from error


async def play(
    player: Any,
    task: Mapping[str, Any],
    *,
    seed: int,
    encode: Callable[[list[dict[str, str]]], Awaitable[list[int]]],
    generate: Callable[[list[int]], Awaitable[Any]],
    tokenizer: Any,
    max_prompt_tokens: int,
) -> Played:
    """Play one episode, each call with a prompt of its own.

    Args:
        player: The environment as a chat.
        task: Fields of its task.
        seed: Of the environment; the attempts at one prompt share it.
        encode: Messages -> ids of the prompt.
        generate: Ids -> verl's ``TokenOutput``.
        tokenizer: Decodes what was sampled.
        max_prompt_tokens: A longer prompt ends the episode; so does one of exactly this length, since verl cuts
            prompts to it and says nothing.
    """
    run = asyncio.get_running_loop().run_in_executor
    pool = None if getattr(player, "is_parallel", False) else ONE_THREAD
    played = Played()
    message = await run(pool, player.open, task, seed)
    try:
        for _ in range(player.max_turns):
            prompt_ids = await encode([{"role": "user", "content": message}])
            if len(prompt_ids) >= max_prompt_tokens:
                played.status = "context_limit"
                break
            output = await generate(prompt_ids)
            ids = list(output.token_ids)
            if not ids:
                played.status = "aborted"
                break
            text = decode(tokenizer, ids)
            reply = await run(pool, player.respond, text)
            span = None if reply.char_span is None else token_span(tokenizer, ids, reply.char_span)
            logprobs = list(output.log_probs) if output.log_probs else None
            facts = dict(output.extra_fields)
            played.turns.append(PlayedTurn(list(prompt_ids), ids, logprobs, reply.action, span, message, text, facts))
            played.reward += reply.reward
            played.invalid += not reply.is_valid
            played.facts |= reply.facts
            if reply.is_over:
                played.success, played.status = reply.success, "done"
                break
            message = reply.message
    finally:
        await run(pool, player.close)
    return played


async def score(
    played: Played, peer: str | None, scorer: Scorer, writer: BlockWriter, *, whole: bool, max_tokens: int
) -> None:
    """Fill in every turn's ``teacher``: the block right before the response, as one request per turn.

    Args:
        played: Of which the turns are scored.
        peer: Text of a success at the same prompt, or None.
        scorer: Who is asked.
        writer: Writes the block.
        whole: Score whole responses instead of their actions.
        max_tokens: Longest request; one token of it is the server's to sample.
    """
    skipped = peer is None and writer.options.rows_without_peer == "skip"

    async def one(turn: PlayedTurn) -> None:
        count = len(turn.response_ids)
        turn.teacher = [math.nan] * count
        span = (0, count) if whole else turn.span
        if skipped or span is None:
            return
        room = max_tokens - 1 - len(turn.prompt_ids) - span[1]
        if room < 0:
            return
        block = writer.write(played.success, peer, room=room).ids
        start, end = span
        context = [*turn.prompt_ids, *turn.response_ids[:start]]
        # What the block explains is the step alone: it stands where the step begins.
        turn.teacher[start:end] = await scorer.score([*context, *block], turn.response_ids[start:end])

    await asyncio.gather(*(one(turn) for turn in played.turns))


def shifted(prompt_length: int, teacher: Sequence[float]) -> list[float]:
    """A row's scores where verl expects them: over prompt and response, each one place before its token.

    Example:
        >>> shifted(2, [-1.0, -2.0])
        [nan, -1.0, -2.0, nan]
    """
    return [*[math.nan] * (prompt_length - 1), *teacher, math.nan]
