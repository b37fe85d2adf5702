"""Where the steps of a host's rows are: sampled runs between tool output, or tagged blocks inside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stepopsd.options.credit import Span
from stepopsd.text.spans import decode, token_span

#: Blocks that hold an action: text games, search, tool calls of Qwen and its kin.
ACTION_TAGS = ("action", "search", "answer", "tool_call")
ANSWER_TAGS = ("answer",)


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of one row.

    Attributes:
        step_ids: Per token the number of its turn, -1 outside the spans.
        turn_ids: Per token the number of its turn, -1 where it was not sampled.
        actions: Per turn what it did: the text inside its block, or the whole turn where no blocks are looked for;
            turns without a block are left out.
    """

    step_ids: list[int]
    turn_ids: list[int]
    actions: list[str]


def find_steps(
    tokenizer: Any, ids: Sequence[int], mask: Sequence[Any], *, span: Span = "action_only",
    tags: Sequence[str] = ACTION_TAGS, stop_ids: Collection[int] = (),
) -> Steps:
    """The steps of a row: its turns are the maximal runs of sampled tokens.

    Args:
        tokenizer: Decodes ids; text is never tokenised again.
        ids: T token ids of the response part.
        mask: T values, true where the token was sampled (a tool mask, an environment mask).
        span: ``action_only``: the first block of a tag in each turn, with its tags; ``answer_only``: the same where
            the tag is ``answer``; ``clean_step_no_observation``: the whole turn.
        tags: Names of the blocks.
        stop_ids: Ends of a turn; a final one lies in no span.

    Raises:
        ValueError: Lengths that differ.

    Example:
        >>> find_steps(tokenizer, ids, mask, span="action_only").step_ids       # doctest: +SKIP
        [-1, -1, 0, 0, 0, -1, -1, 1, 1, 1]
    """
    if len(ids) != len(mask):
        raise ValueError(f"mask must hold {len(ids)} values like ids, got {len(mask)}")
    out = Steps([-1] * len(ids), [-1] * len(ids), [])
    for turn, (a, b) in enumerate(sampled_runs(mask)):
        out.turn_ids[a:b] = [turn] * (b - a)
        end = b - (ids[b - 1] in stop_ids)
        found = _span(tokenizer, list(ids[a:end]), span, tags)
        if found is not None:
            (low, high), action = found
            out.step_ids[a + low : a + high] = [turn] * (high - low)
            out.actions.append(action)
    return out


def sampled_runs(mask: Sequence[Any]) -> list[tuple[int, int]]:
    """Half-open runs of true values.

    Example:
        >>> sampled_runs([1, 1, 0, 1])
        [(0, 2), (3, 4)]
    """
    runs, start = [], 0
    for sampled, values in groupby(mask, bool):
        end = start + len(list(values))
        if sampled:
            runs.append((start, end))
        start = end
    return runs


def _span(tokenizer: Any, ids: list[int], span: Span, tags: Sequence[str]) -> tuple[tuple[int, int], str] | None:
    text = decode(tokenizer, ids)
    if not text.strip():
        return None
    if span == "clean_step_no_observation":
        return (0, len(ids)), text.strip()
    names = "|".join(re.escape(tag) for tag in tags)
    block = re.search(rf"<({names})>(.*?)</\1>", text, re.DOTALL) if names else None
    if block is None or (span == "answer_only" and block[1] not in ANSWER_TAGS):
        return None
    return token_span(tokenizer, ids, block.span()), block[2].strip()
