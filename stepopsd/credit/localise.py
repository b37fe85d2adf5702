"""Asking a model for the first wrong step of its own failed attempt, and reading its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_PROSE = re.compile(r"\bstep\s*#?\s*(\d+)", re.IGNORECASE)
_PROMPT = """Below are a problem and an attempt at it, divided into numbered steps. The attempt's final answer is wrong.

Problem:
{problem}

Attempt:
{steps}

Find where the attempt goes wrong for the first time: the earliest step that does not follow from the problem and the
steps before it. A later step in which the damage becomes visible is not what is asked for; if two steps are in doubt,
take the earlier one. Do not solve the problem again and do not correct the attempt. Settle on exactly one step from 1
to {count} and end your reply with its number, in this form: \\boxed{{number}}"""


@dataclass(frozen=True, slots=True)
class Localisation:
    """The step that a reply names.

    Attributes:
        step: In 1..n.
        how: ``boxed``, ``clamped`` (a boxed 0, taken as 1), ``prose`` ("step k") or ``default`` (nothing usable: 1).
    """

    step: int
    how: Literal["boxed", "clamped", "prose", "default"]


def localiser_prompt(problem: str, steps: Sequence[str]) -> str:
    """The question to put to the model in one user turn.

    It is told that the attempt failed, not what the right answer is.

    Args:
        problem: The task as the policy saw it.
        steps: Texts of the attempt's steps, without delimiters; at least one.

    Raises:
        ValueError: No steps.

    Source: the task is that of arXiv 2605.25507, the wording is ours.
    """
    if not steps:
        raise ValueError("steps must hold at least one step, got none")
    numbered = "\n".join(f"Step {i}: {text.strip()}" for i, text in enumerate(steps, 1))
    return _PROMPT.format(problem=problem.strip(), steps=numbered, count=len(steps))


def parse_location(reply: str, count: int) -> Localisation:
    """Read the number of a step from a reply.

    The content of the last brace-balanced ``\\boxed{...}`` if it is a number in 1..count, or 0, which means 1; else the
    last "step k" in the text if k is in 1..count; else 1.

    Args:
        reply: What the model said; may be empty.
        count: Number of steps, at least 1.

    Raises:
        ValueError: count below 1.

    Example:
        >>> parse_location("Step 4 fails because of step 2: \\\\boxed{2}", 5)
        Localisation(step=2, how='boxed')
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    content = (last_boxed(reply) or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", content) and int(content) <= count:
        return Localisation(int(content), "boxed") if int(content) else Localisation(1, "clamped")
    named = _PROSE.findall(reply)
    if named and len(named[-1]) < 10 and 1 <= int(named[-1]) <= count:
        return Localisation(int(named[-1]), "prose")
    return Localisation(1, "default")


def last_boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` whose braces are balanced, None without one."""
    for match in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[match.end() : place]
    return None
