"""Which response tokens carry a step."""

from __future__ import annotations

from typing import Any

from stepopsd.text.spans import decode, token_span


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
