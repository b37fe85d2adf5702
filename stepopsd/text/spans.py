"""Exact token ranges of character ranges, from the sampled ids themselves.

Token boundaries come from decoding prefixes of the sampled ids; text is never tokenised. A token belongs to a span
when it contributes to one of its characters, so a token that straddles a tag boundary belongs to it, and all tokens
that share a multi-byte character belong to that character.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of ids, special tokens shown, spaces left alone."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


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
