"""Which response tokens carry a step: exact token ranges of character ranges, from the sampled ids themselves.

Token boundaries come from decoding prefixes of the sampled ids; text is never tokenised. A token belongs to a span
when it contributes to one of its characters, so a token that straddles a tag boundary belongs to it, and all tokens
that share a multi-byte character belong to that character.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

from stepopsd.rollout.chat import decode


def token_span(tokenizer: Any, ids: list[int], chars: tuple[int, int]) -> tuple[int, int]:
    """Smallest token range whose tokens touch every character in a range of the decoded text.

    Args:
        tokenizer: Decodes ids.
        ids: Sampled ids.
        chars: Half-open character range in ``decode(tokenizer, ids)``, not empty.

    Returns:
        Half-open token range in ``ids``.

    Raises:
        ValueError: The range is empty or leaves the text.
    """
    text = decode(tokenizer, ids)
    low, high = chars
    if not 0 <= low < high <= len(text):
        raise ValueError(f"chars must be a non-empty range within {len(text)} characters, got {chars}")
    valid = "\ufffd" not in text
    settled = _settled(tokenizer, ids, text) if valid else _settled_for_good(tokenizer, ids, text)
    counts = range(len(ids) + 1)
    start = bisect_right(counts, low, key=settled) - 1
    # Tokens before the one that completes character `low` may hold its first bytes.
    while start > 0 and (settled(start) == low or not valid):
        if decode(tokenizer, ids[:start]) == text[: settled(start)]:
            break
        start -= 1
    return start, bisect_left(counts, high, key=settled)


def _settled(tokenizer: Any, ids: list[int], text: str) -> Callable[[int], int]:
    """n -> how many characters of valid ``text`` the first n ids spell completely; never falls with n."""

    def count(n: int) -> int:
        best = _agreement(tokenizer, ids[:n], text)
        # Byte-fallback decoders give up a whole run of bytes while its last character is incomplete, so the last
        # prefix that reads like the text may know more.
        while n > 0 and not text.startswith(decode(tokenizer, ids[:n])):
            n -= 1
            best = max(best, _agreement(tokenizer, ids[:n], text))
        return best

    return count


def _settled_for_good(tokenizer: Any, ids: list[int], text: str) -> Callable[[int], int]:
    """The same for text with undecodable bytes, where a later byte may undo a character: only what stays counts."""
    table = [_agreement(tokenizer, ids[:n], text) for n in range(len(ids) + 1)]
    for n in range(len(ids) - 1, -1, -1):
        table[n] = min(table[n], table[n + 1])
    return table.__getitem__


def _agreement(tokenizer: Any, ids: list[int], text: str) -> int:
    """Length of the common prefix of the ids' text and ``text``."""
    prefix = decode(tokenizer, ids)
    pairs = zip(prefix, text, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prefix), len(text)))


def step_spans(
    tokenizer: Any, content_ids: list[int], action_chars: tuple[int, int] | None, *, is_answer: bool = False
) -> dict[str, tuple[int, int]]:
    """The named spans of one model turn (arXiv 2605.27140, target-span modes).

    Args:
        tokenizer: Decodes ids.
        content_ids: Response without a final stop id, which therefore lies in no span.
        action_chars: Characters of the action block with its tags in the decoded content, None without a block.
        is_answer: The action is an answer.

    Returns:
        ``clean_step_no_observation``: the whole content (observations are never part of a response); absent when it
        is white space. ``action_only``: the action block; absent when there is none. ``answer_only``: the same
        block, where it is an answer.
    """
    if not decode(tokenizer, content_ids).strip():
        return {}
    spans = {"clean_step_no_observation": (0, len(content_ids))}
    if action_chars is not None:
        spans["action_only"] = token_span(tokenizer, content_ids, action_chars)
        if is_answer:
            spans["answer_only"] = spans["action_only"]
    return spans
